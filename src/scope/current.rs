//! Which unit of work is running on this thread right now.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;

use crate::error::Cut;
use crate::memory::{self, Delta, Sample};
use crate::meter::Meter;
use crate::meter::recording::Subscribed;
use crate::resource::Resource;
use crate::time::Instant;
use crate::usage::Usage;

thread_local! {
    static HERE: Here = const { Here { meter: Cell::new(None), start: Cell::new(None) } };
}

struct Here {
    /// The innermost unit of work; what it runs inside hangs on it.
    meter: Cell<Option<Arc<Meter>>>,
    /// Since when memory is to be charged to it.
    start: Cell<Option<Sample>>,
}

/// The unit of work that is running here.
///
/// While the thread is being torn down there is none.
pub(crate) fn current() -> Option<Arc<Meter>> {
    HERE.try_with(|here| {
        let meter = here.meter.take();
        here.meter.set(meter.clone());
        meter
    })
    .ok()
    .flatten()
}

/// The usage of the work that is running here, what this very poll has used so far included.
pub(crate) fn usage() -> Option<Usage> {
    let meter = current()?;
    let start = HERE.try_with(|here| here.start.get()).ok().flatten();
    Some(meter.usage(start.map(memory::since).unwrap_or_default()))
}

/// The hard limit that ends the work that is running here, what this very poll has used so far included.
pub(crate) fn checkpoint() -> Result<(), Cut> {
    let Some(meter) = current() else { return Ok(()) };
    let start = HERE.try_with(|here| here.start.get()).ok().flatten();
    meter.checkpoint(start.map(memory::since).unwrap_or_default())
}

/// A unit of work entered on this thread, until dropped.
///
/// The handle moves from its slot to the thread and back, so entering costs no reference count.
pub(crate) struct Entered<'a> {
    slot: &'a mut Option<Arc<Meter>>,
    /// `None` where there was nothing to enter.
    outer: Option<Outer>,
    polled: Option<Instant>,
    /// After `outer`, so that it holds for all that is run here.
    _subscribed: Subscribed,
}

/// What was running here before.
struct Outer {
    meter: Option<Arc<Meter>>,
    start: Option<Sample>,
    peak: i64,
}

impl<'a> Entered<'a> {
    /// Enters the work in this slot.
    ///
    /// With an empty slot, and where this very work is running here already, all stays as it is.
    pub(crate) fn new(slot: &'a mut Option<Arc<Meter>>) -> Self {
        let timed = |meter: &Meter| meter.chain().any(|m| m.limits().names(Resource::PollTime));
        let polled = slot.as_deref().is_some_and(timed).then(Instant::now);
        #[cfg(feature = "mongodb")]
        if let Some(meter) = slot {
            meter.polled();
        }
        let subscribed = Subscribed::new(slot.as_ref(), current);
        let outer = HERE.try_with(|here| here.enter(slot)).ok().flatten();
        Self { slot, outer, polled, _subscribed: subscribed }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Some(outer) = self.outer.take() else { return };
        let polled = self.polled.map(|since| since.elapsed());
        let Ok(left) = HERE.try_with(|here| here.leave(outer)) else { return };
        *self.slot = left.meter;
        let Some(meter) = &*self.slot else { return };
        // What encloses this poll on this thread accounts for its own polls, this one included.
        let enclosing = current();
        let elsewhere = |meter: &&Meter| {
            !enclosing
                .as_deref()
                .is_some_and(|outer| outer.chain().any(|open| ptr::eq(open, *meter)))
        };
        for meter in meter.chain().take_while(elsewhere) {
            meter.add_memory(left.memory);
            if let Some(time) = polled {
                meter.add_poll(time);
            }
        }
    }
}

/// What was entered, and what it used meanwhile.
struct Left {
    meter: Option<Arc<Meter>>,
    memory: Delta,
}

impl Here {
    fn enter(&self, slot: &mut Option<Arc<Meter>>) -> Option<Outer> {
        let entering = slot.take()?;
        let outer = self.meter.take();
        if outer.as_ref().is_some_and(|outer| Arc::ptr_eq(outer, &entering)) {
            self.meter.set(outer);
            *slot = Some(entering);
            return None;
        }
        self.meter.set(Some(entering));
        let (start, peak) = memory::start();
        Some(Outer { meter: outer, start: self.start.replace(Some(start)), peak })
    }

    fn leave(&self, outer: Outer) -> Left {
        let memory = self.start.replace(outer.start).map(memory::since).unwrap_or_default();
        memory::resume(outer.peak);
        Left { meter: self.meter.replace(outer.meter), memory }
    }
}
