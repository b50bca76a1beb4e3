//! Which unit of work is running on this thread right now.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Cut;
use crate::memory::{self, Delta, Sample};
use crate::meter::Meter;
use crate::meter::recording::Subscribed;
use crate::time::Instant;
use crate::usage::Usage;

thread_local! {
    static HERE: Here = const { Here { meter: Cell::new(ManuallyDrop::new(None)), start: Cell::new(Sample::new()) } };
}

struct Here {
    /// The innermost unit of work; what it runs inside hangs on it.
    ///
    /// Whoever entered it takes it out again, so there is never anything to drop with the thread; and
    /// what has no destructor is read without asking whether that has run.
    meter: Cell<ManuallyDrop<Option<Arc<Meter>>>>,
    /// Since when memory is to be charged to it, if there is one.
    start: Cell<Sample>,
}

impl Here {
    #[inline]
    fn replace(&self, meter: Option<Arc<Meter>>) -> Option<Arc<Meter>> {
        ManuallyDrop::into_inner(self.meter.replace(ManuallyDrop::new(meter)))
    }

    #[inline]
    fn enter(&self, slot: &mut Option<Arc<Meter>>) -> Option<OuterMemory> {
        let entering = Arc::as_ptr(slot.as_ref()?);
        *slot = self.replace(slot.take());
        if slot.as_ref().is_some_and(|outer| ptr::eq(Arc::as_ptr(outer), entering)) {
            return None;
        }
        let (start, peak) = memory::start();
        Some(OuterMemory { start: self.start.replace(start), peak })
    }

    /// Returns what was allocated and freed meanwhile.
    #[inline]
    fn leave(&self, slot: &mut Option<Arc<Meter>>, outer: &OuterMemory) -> Delta {
        let memory = memory::end(self.start.replace(outer.start), outer.peak);
        *slot = self.replace(slot.take());
        memory
    }
}

/// Whether any unit of work is running here.
#[inline]
pub(crate) fn is_any() -> bool {
    HERE.with(|here| {
        let meter = here.replace(None);
        let is_any = meter.is_some();
        here.replace(meter);
        is_any
    })
}

/// The unit of work that is running here.
pub(crate) fn current() -> Option<Arc<Meter>> {
    HERE.with(|here| {
        let meter = here.replace(None);
        here.replace(meter.clone());
        meter
    })
}

/// The usage of the work that is running here, what this very poll has used so far included.
pub(crate) fn usage() -> Option<Usage> {
    let meter = current()?;
    Some(meter.usage(pending()))
}

/// The hard limit that ends the work that is running here, what this very poll has used so far included.
pub(crate) fn checkpoint() -> Result<(), Cut> {
    let Some(meter) = current() else { return Ok(()) };
    meter.checkpoint(pending())
}

/// What this very poll has allocated and freed so far.
fn pending() -> Delta {
    HERE.with(|here| memory::since(here.start.get()))
}

/// A unit of work entered on this thread, until left or dropped.
///
/// The handle moves from its slot to the thread and back, so entering costs no reference count.
pub(crate) struct Entered<'a> {
    /// Meanwhile it holds what was running here before.
    slot: &'a mut Option<Arc<Meter>>,
    /// The memory of that; `None` where there was nothing to enter.
    outer: Option<OuterMemory>,
    polled: Option<Instant>,
    subscribed: Subscribed,
}

/// Of no meaning where nothing was running.
#[derive(Clone, Copy)]
struct OuterMemory {
    start: Sample,
    peak: i64,
}

impl<'a> Entered<'a> {
    /// Enters the work in this slot.
    ///
    /// With an empty slot, and where this very work is running here already, all stays as it is.
    #[inline]
    pub(crate) fn new(slot: &'a mut Option<Arc<Meter>>) -> Self {
        let polled = slot.as_deref().and_then(Meter::polled);
        let subscribed = Subscribed::new(slot.as_ref(), current);
        let outer = HERE.with(|here| here.enter(slot));
        Self { slot, outer, polled, subscribed }
    }

    /// Leaves it as a drop would, which is for panics: a destructor is called, this is inlined.
    #[inline]
    pub(crate) fn leave(self) {
        let mut this = ManuallyDrop::new(self);
        this.end();
        let _subscribed = mem::take(&mut this.subscribed);
    }

    #[inline(always)]
    fn end(&mut self) {
        let Some(outer) = &self.outer else { return };
        let polled = self.polled.map(|since| since.elapsed());
        let memory = HERE.with(|here| here.leave(self.slot, outer));
        // Most polls neither allocate nor free, and none is timed without need.
        if let (Some(meter), true) = (&*self.slot, polled.is_some() || !memory.is_nothing()) {
            charge(meter, memory, polled, outer);
        }
    }
}

impl Drop for Entered<'_> {
    #[cold]
    fn drop(&mut self) {
        self.end();
    }
}

/// Charges a poll that is over to the work and to what it runs inside.
#[inline(never)]
fn charge(meter: &Meter, memory: Delta, polled: Option<Duration>, outer: &OuterMemory) {
    if !is_any() {
        return charge_all(meter.chain(), memory, polled);
    }
    // What encloses this poll on this thread accounts for its own polls, this one included.
    let enclosing = current();
    let is_in = |inner: &Meter, outer: &Meter| inner.chain().any(|open| ptr::eq(open, outer));
    let elsewhere =
        |meter: &&Meter| !enclosing.as_deref().is_some_and(|enclosing| is_in(enclosing, meter));
    // Unless it is the poll of work that was made elsewhere, and is none of its business.
    if let Some(stranger) = &enclosing
        && elsewhere(&meter)
        && !is_in(meter, stranger)
    {
        if meter.chain().all(|meter| elsewhere(&meter)) {
            // Nor that of any other that is open here, or has begun something of our own.
            memory::forget(memory, outer.peak);
        } else {
            HERE.with(|here| here.start.set(memory::leave_out(memory, outer.start, outer.peak)));
        }
    }
    charge_all(meter.chain().take_while(elsewhere), memory, polled);
}

fn charge_all<'a>(all: impl Iterator<Item = &'a Meter>, memory: Delta, polled: Option<Duration>) {
    for meter in all {
        meter.add_memory(memory);
        if let Some(time) = polled {
            meter.add_poll(time);
        }
    }
}
