//! Which unit of work is running on this thread right now.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Cut;
use crate::memory::{self, Delta, Sample};
use crate::meter::recording::{Subscribed, is_live};
use crate::meter::{Link, Meter};
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

    /// Looks at the innermost unit of work, which is taken out meanwhile: whoever looks must not panic, or look
    /// here again.
    #[inline]
    fn look<T>(&self, at: impl FnOnce(&Option<Arc<Meter>>) -> T) -> T {
        let meter = self.replace(None);
        let seen = at(&meter);
        self.replace(meter);
        seen
    }
}

/// Whether any unit of work is running here.
#[inline]
pub(crate) fn is_any() -> bool {
    HERE.with(|here| here.look(Option::is_some))
}

/// Whether it is this unit of work that is running here.
#[cfg(any(feature = "http", feature = "sqlx"))]
pub(crate) fn is_current(this: &Arc<Meter>) -> bool {
    let is_this = |meter: &Arc<Meter>| Arc::ptr_eq(meter, this);
    HERE.with(|here| here.look(|meter| meter.as_ref().is_some_and(is_this)))
}

/// The unit of work that is running here.
pub(crate) fn current() -> Option<Arc<Meter>> {
    HERE.with(|here| here.look(Clone::clone))
}

/// The usage of the work that is running here, what this very poll has used so far included.
pub(crate) fn usage() -> Option<Usage> {
    let meter = current()?;
    #[cfg(feature = "witness")]
    meter.wait_for_drivers();
    Some(meter.usage(pending()))
}

/// The hard limit that ends the work that is running here, what this very poll has used so far included.
pub(crate) fn checkpoint() -> Result<(), Cut> {
    let Some(meter) = current() else { return Ok(()) };
    meter.checkpoint(pending())
}

/// Whether so much was refused to the work that is running here that nothing seems to end it.
pub(crate) fn is_refused_often() -> bool {
    current().is_some_and(|meter| meter.chain().any(|meter| meter.is_refused_often()))
}

/// What this very poll has allocated and freed so far.
fn pending() -> Delta {
    HERE.with(|here| memory::since(here.start.get()))
}

/// How many bytes the work that is running here has allocated in this very poll so far.
pub(crate) fn allocated_in_poll() -> u64 {
    if is_any() { pending().allocated } else { 0 }
}

/// A unit of work entered on this thread, until left or dropped.
pub(crate) struct Entered<'a> {
    slot: &'a mut Option<Arc<Meter>>,
    entry: Entry,
}

impl<'a> Entered<'a> {
    /// Enters the work in this slot.
    pub(crate) fn new(slot: &'a mut Option<Arc<Meter>>) -> Self {
        let mut entry = Entry::Out;
        entry.enter(slot);
        Self { slot, entry }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.entry.leave(self.slot);
    }
}

/// How a unit of work was entered on this thread, for as long as it is.
///
/// The handle moves from its slot to the thread and back, so entering costs no reference count; meanwhile the
/// slot holds what was running here before. Entered and left where it lies: copying it made 20 instructions of
/// each poll.
pub(super) enum Entry {
    /// Not at all: there was nothing to enter, or it was running here already, or it has been left.
    Out,
    /// As nearly always: it wants nothing but its memory, and nothing was running here.
    Plain,
    Noted(Notes),
}

/// What is to be known when the work is left.
pub(super) struct Notes {
    /// The memory of what was running here before, if anything was.
    outer: Option<OuterMemory>,
    polled: Option<Instant>,
    /// The span of its own in which the work runs, if it has one.
    #[cfg(feature = "witness")]
    span: Option<tracing::span::EnteredSpan>,
    _subscribed: Subscribed,
}

struct OuterMemory {
    start: Sample,
    peak: i64,
}

impl Entry {
    /// Enters the work in this slot; once.
    ///
    /// With an empty slot, and where this very work is running here already, all stays as it is.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn enter(&mut self, slot: &mut Option<Arc<Meter>>) {
        if slot.as_ref().is_none_or(|meter| meter.asks_of_polls()) || is_live() || is_any() {
            return self.enter_noting(slot);
        }
        let meter = ManuallyDrop::new(slot.take());
        HERE.with(|here| here.meter.set(meter));
        let (start, _) = memory::start();
        HERE.with(|here| here.start.set(start));
        *self = Self::Plain;
    }

    /// Leaves the work, unless it has been left.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn leave(&mut self, slot: &mut Option<Arc<Meter>>) {
        match self {
            Self::Plain => self.leave_plainly(slot),
            Self::Out | Self::Noted(_) => self.leave_noted(slot),
        }
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn leave_plainly(&mut self, slot: &mut Option<Arc<Meter>>) {
        *self = Self::Out;
        let memory = memory::end(HERE.with(|here| here.start.get()));
        let meter = HERE.with(|here| here.replace(None));
        // The slot is empty, which the compiler does not know: it would drop what is in it.
        let _ = ManuallyDrop::new(mem::replace(slot, meter));
        // Most polls neither allocate nor free.
        if let (Some(memory), Some(meter)) = (memory, &*slot) {
            charge_plainly(meter, memory);
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_noting(&mut self, slot: &mut Option<Arc<Meter>>) {
        let Some(meter) = &*slot else { return };
        let _subscribed = Subscribed::new(meter, current);
        let polled = meter.polled();
        let entering = Arc::as_ptr(meter);
        #[cfg(feature = "witness")]
        let span = memory::aside(|| meter.own_span().cloned());
        let meter = slot.take();
        *slot = HERE.with(|here| here.replace(meter));
        if slot.as_ref().is_some_and(|outer| ptr::eq(Arc::as_ptr(outer), entering)) {
            return;
        }
        #[cfg(feature = "witness")]
        let span = memory::aside(|| span.map(tracing::Span::entered));
        let (start, peak) = memory::start();
        let start = HERE.with(|here| here.start.replace(start));
        let outer = slot.as_ref().map(|_| OuterMemory { start, peak });
        *self = Self::Noted(Notes {
            outer,
            polled,
            #[cfg(feature = "witness")]
            span,
            _subscribed,
        });
    }

    #[cold]
    #[inline(never)]
    fn leave_noted(&mut self, slot: &mut Option<Arc<Meter>>) {
        let Self::Noted(notes) = mem::replace(self, Self::Out) else { return };
        let Notes { outer, polled, _subscribed, .. } = notes;
        let polled = polled.map(|since| since.elapsed());
        let memory = memory::end(HERE.with(|here| here.start.get()));
        // Exited as it was entered: while the work is the one that is running here.
        #[cfg(feature = "witness")]
        memory::aside(|| drop(notes.span));
        if let Some(outer) = &outer {
            memory::raise_peak(outer.peak);
            HERE.with(|here| here.start.set(outer.start));
        }
        let before = slot.take();
        *slot = HERE.with(|here| here.replace(before));
        if let (Some(meter), true) = (&*slot, polled.is_some() || memory.is_some()) {
            charge(meter, memory.unwrap_or_default(), polled, outer.as_ref());
        }
    }
}

/// Charges a poll that is over to the work and to what it runs inside.
fn charge(meter: &Meter, memory: Delta, polled: Option<Duration>, outer: Option<&OuterMemory>) {
    let Some(outer) = outer else { return charge_all(meter.chain(), memory, polled) };
    // What encloses this poll on this thread accounts for its own polls, this one included.
    let enclosing = current();
    let is_in = |inner: &Meter, outer: &Meter| inner.chain().any(|open| ptr::eq(&*open, outer));
    let elsewhere =
        |meter: &Meter| !enclosing.as_deref().is_some_and(|enclosing| is_in(enclosing, meter));
    // Unless it is the poll of work that was made elsewhere, and is none of its business.
    if let Some(stranger) = &enclosing
        && elsewhere(meter)
        && !is_in(meter, stranger)
    {
        if meter.chain().all(|meter| elsewhere(&meter)) {
            // Nor that of any other that is open here, or has begun something of our own.
            memory::forget(memory, outer.peak);
        } else {
            HERE.with(|here| here.start.set(memory::leave_out(memory, outer.start, outer.peak)));
        }
    }
    charge_all(meter.chain().take_while(|meter| elsewhere(meter)), memory, polled);
}

/// Charges the memory of a poll that is over, where nothing else was running.
#[inline(never)]
fn charge_plainly(meter: &Meter, memory: Delta) {
    meter.each(|meter| meter.add_memory(memory));
}

#[inline(never)]
fn charge_all<'a>(all: impl Iterator<Item = Link<'a>>, memory: Delta, polled: Option<Duration>) {
    for meter in all {
        meter.add_memory(memory);
        if let Some(time) = polled {
            meter.add_poll(time);
        }
    }
}
