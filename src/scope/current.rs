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
    static HERE: Here = const {
        Here { meter: Cell::new(ManuallyDrop::new(None)), start: Cell::new(Sample::new()) }
    };
}

struct Here {
    /// The innermost unit of work; it knows the outer ones that it runs inside.
    ///
    /// Every guard that enters a scope also leaves it, so nothing is left to be dropped when the
    /// thread ends. That allows `ManuallyDrop`: a thread-local without a destructor is read without
    /// a check whether it was destroyed.
    meter: Cell<ManuallyDrop<Option<Arc<Meter>>>>,
    /// The allocator's counters when the running poll began, or when memory was last charged.
    start: Cell<Sample>,
}

impl Here {
    #[inline]
    fn replace(&self, meter: Option<Arc<Meter>>) -> Option<Arc<Meter>> {
        ManuallyDrop::into_inner(self.meter.replace(ManuallyDrop::new(meter)))
    }

    /// Passes the innermost unit of work to `at`. The slot is empty meanwhile, so `at` must neither
    /// panic nor call this function again.
    #[inline]
    fn look<T>(&self, at: impl FnOnce(&Option<Arc<Meter>>) -> T) -> T {
        let meter = self.replace(None);
        let seen = at(&meter);
        self.replace(meter);
        seen
    }
}

/// Whether a unit of work is running on this thread.
#[inline]
pub(crate) fn is_any() -> bool {
    HERE.with(|here| here.look(Option::is_some))
}

/// Whether this unit of work is the innermost one that is running on this thread.
#[cfg(any(feature = "http", feature = "sqlx"))]
pub(crate) fn is_current(this: &Arc<Meter>) -> bool {
    let is_this = |meter: &Arc<Meter>| Arc::ptr_eq(meter, this);
    HERE.with(|here| here.look(|meter| meter.as_ref().is_some_and(is_this)))
}

/// The innermost unit of work that is running on this thread.
pub(crate) fn current() -> Option<Arc<Meter>> {
    HERE.with(|here| here.look(Clone::clone))
}

/// The usage of the running work, including what the current poll has used so far.
pub(crate) fn usage() -> Option<Usage> {
    let meter = current()?;
    #[cfg(feature = "witness")]
    meter.wait_for_drivers();
    Some(meter.usage(pending()))
}

/// The error of a hard limit that ends the running work, including what the current poll has used
/// so far.
pub(crate) fn checkpoint() -> Result<(), Cut> {
    let Some(meter) = current() else { return Ok(()) };
    meter.checkpoint(pending())
}

/// Whether so many operations were refused to the running work that it seems to retry without ever
/// being cut.
pub(crate) fn is_refused_often() -> bool {
    current().is_some_and(|meter| meter.chain().any(|meter| meter.is_refused_often()))
}

/// What the current poll has allocated and freed so far.
fn pending() -> Delta {
    HERE.with(|here| memory::since(here.start.get()))
}

/// How many bytes the running work has allocated so far in the current poll.
pub(crate) fn allocated_in_poll() -> u64 {
    if is_any() { pending().allocated } else { 0 }
}

/// Guard: a unit of work whose scope is entered on this thread until the guard is dropped.
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

/// The state of one entry into a scope: how it was entered, and what has to be restored when it is
/// left.
///
/// Entering swaps the handle of the work from its slot into the thread-local, and the handle of the
/// work that ran before into the slot; leaving swaps them back. So neither costs a reference count.
/// `enter` and `leave` change the value in place, because copying it took 20 instructions of each
/// poll.
pub(super) enum Entry {
    /// Not entered: the slot was empty, the same work was running already, or the scope has been
    /// left.
    Out,
    /// The fast path: no other work was running here, and only memory has to be charged.
    Plain,
    /// The slow path: nested work, work whose polls are timed, work with a span of its own, or a
    /// recording.
    Noted(Notes),
}

/// What has to be restored, or charged, when the scope is left.
pub(super) struct Notes {
    /// The memory counters of the work that was running here before, if there was any.
    outer: Option<OuterMemory>,
    /// When the poll began, if polls are timed.
    polled: Option<Instant>,
    /// The span by which the work is recognised on the threads of drivers, if it has one.
    #[cfg(feature = "witness")]
    span: Option<tracing::span::EnteredSpan>,
    _subscribed: Subscribed,
}

struct OuterMemory {
    start: Sample,
    peak: i64,
}

impl Entry {
    /// Enters the scope of the work in this slot. To be called once.
    ///
    /// Does nothing if the slot is empty, or if the same work is running on this thread already.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn enter(&mut self, slot: &mut Option<Arc<Meter>>) {
        if slot.as_ref().is_none_or(|meter| meter.observes_polls()) || is_live() || is_any() {
            return self.enter_with_notes(slot);
        }
        let meter = ManuallyDrop::new(slot.take());
        HERE.with(|here| here.meter.set(meter));
        let (start, _) = memory::start();
        HERE.with(|here| here.start.set(start));
        *self = Self::Plain;
    }

    /// Leaves the scope and charges what the poll has used. Does nothing if it was left before.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(super) fn leave(&mut self, slot: &mut Option<Arc<Meter>>) {
        match self {
            Self::Plain => self.leave_plainly(slot),
            Self::Out | Self::Noted(_) => self.leave_with_notes(slot),
        }
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn leave_plainly(&mut self, slot: &mut Option<Arc<Meter>>) {
        *self = Self::Out;
        let memory = memory::end(HERE.with(|here| here.start.get()));
        let meter = HERE.with(|here| here.replace(None));
        // The slot is empty, but the compiler does not know that and would emit code to drop its
        // content.
        let _ = ManuallyDrop::new(mem::replace(slot, meter));
        // Most polls neither allocate nor free.
        if let (Some(memory), Some(meter)) = (memory, &*slot) {
            charge_plainly(meter, memory);
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_with_notes(&mut self, slot: &mut Option<Arc<Meter>>) {
        let Some(meter) = &*slot else { return };
        let _subscribed = Subscribed::new(meter, current);
        let polled = meter.note_poll();
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
    fn leave_with_notes(&mut self, slot: &mut Option<Arc<Meter>>) {
        let Self::Noted(notes) = mem::replace(self, Self::Out) else { return };
        let Notes { outer, polled, _subscribed, .. } = notes;
        let polled = polled.map(|since| since.elapsed());
        let memory = memory::end(HERE.with(|here| here.start.get()));
        // The span was entered while this work was the running one, so it is exited before that
        // changes.
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

/// Charges a poll that has ended to the work and to the works that it runs inside.
fn charge(meter: &Meter, memory: Delta, polled: Option<Duration>, outer: Option<&OuterMemory>) {
    let Some(outer) = outer else { return charge_all(meter.chain(), memory, polled) };
    // The work that encloses this poll on this thread charges its own polls, and this one is part
    // of them.
    let enclosing = current();
    let is_in = |inner: &Meter, outer: &Meter| inner.chain().any(|open| ptr::eq(&*open, outer));
    let elsewhere =
        |meter: &Meter| !enclosing.as_deref().is_some_and(|enclosing| is_in(enclosing, meter));
    // Except if the enclosing work merely polls a future that belongs to other work: then this poll
    // is charged to that work, and left out of the memory of the enclosing one.
    if let Some(stranger) = &enclosing
        && elsewhere(meter)
        && !is_in(meter, stranger)
    {
        if meter.chain().all(|meter| elsewhere(&meter)) {
            // No work that is open on this thread has to be charged.
            memory::forget(memory, outer.peak);
        } else {
            HERE.with(|here| here.start.set(memory::leave_out(memory, outer.start, outer.peak)));
        }
    }
    charge_all(meter.chain().take_while(|meter| elsewhere(meter)), memory, polled);
}

/// Charges the memory of a poll that has ended, where no other work was running on this thread.
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
