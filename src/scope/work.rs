//! A unit of work from its start to the one report of its end.

use std::borrow::Cow;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(feature = "http")]
use std::time::Duration;

use super::current::{Entry, current, is_any};
use crate::budget::Budget;
use crate::error::Cut;
use crate::memory;
#[cfg(feature = "http")]
use crate::meter::InFlightSince;
use crate::meter::{Meter, Origin};
use crate::report::{self, Name, Outcome, Reporter};
use crate::time::Instant;

/// A unit of work, owned by the future (later by the body) that runs it. Its end is reported
/// exactly once.
///
/// If it is dropped before it was [finished](Self::finish), it ends as cancelled, or as panicked.
#[derive(Debug)]
pub(crate) struct Work {
    /// `None` while the scope is entered, and for good once the work is finished.
    meter: Option<Arc<Meter>>,
    /// A piece of it has panicked.
    panicked: bool,
    /// How many more pieces may still determine which outer work this one runs inside. Two for a
    /// request, since the service may be called inside of other work while its future is polled
    /// outside of it, or the reverse.
    links_left: u8,
}

impl Work {
    #[cfg(feature = "http")]
    pub(crate) fn start(
        name: Name,
        budget: Cow<'_, Budget>,
        reporter: Option<Arc<dyn Reporter>>,
    ) -> Self {
        let work = Self::start_with(None, name, budget, reporter, 2);
        #[cfg(feature = "testing")]
        if let Some(meter) = &work.meter {
            meter.mark_as_request();
        }
        work
    }

    /// Starts work whose attributes and whose creator are known.
    pub(crate) fn start_from(
        origin: Origin,
        name: Name,
        budget: Budget,
        reporter: Option<Arc<dyn Reporter>>,
    ) -> Self {
        Self::start_with(Some(origin), name, Cow::Owned(budget), reporter, 1)
    }

    #[inline]
    fn start_with(
        origin: Option<Origin>,
        name: Name,
        budget: Cow<'_, Budget>,
        reporter: Option<Arc<dyn Reporter>>,
        pieces: u8,
    ) -> Self {
        let meter = Meter::open(name, budget, reporter);
        if let Some(origin) = origin {
            meter.set_origin(origin);
        }
        #[cfg(feature = "witness")]
        meter.adopt();
        Self { meter: Some(meter), panicked: false, links_left: pieces }
    }

    /// Runs a piece of the work: a poll, a call, a destructor. What it does is charged to the work.
    #[inline]
    pub(crate) fn run<T>(&mut self, piece: impl FnOnce() -> T) -> T {
        let mut running = self.piece();
        running.enter();
        let result = piece();
        running.leave();
        running.done();
        result
    }

    /// A piece to be run by hand between [`enter`](Running::enter) and [`leave`](Running::leave):
    /// for large values, which a closure would copy in and out.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn piece(&mut self) -> Running<'_> {
        Running { work: self, entry: Entry::Out }
    }

    /// Determines which outer work this one runs inside, if any is running, or if this is the last
    /// piece that may.
    #[inline]
    fn link(&mut self) {
        self.links_left = self.links_left.saturating_sub(1);
        if is_any() {
            self.settle(current());
        } else if cfg!(feature = "witness") && self.links_left == 0 {
            self.settle(None);
        }
    }

    #[cold]
    fn settle(&mut self, outer: Option<Arc<Meter>>) {
        self.links_left = 0;
        if let Some(meter) = &self.meter {
            meter.link(outer);
            #[cfg(feature = "witness")]
            meter.share_with_drivers();
        }
    }

    /// When the time is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.meter.as_ref()?.deadline()
    }

    /// The account, until the work is finished.
    #[cfg(feature = "http")]
    pub(crate) fn meter(&self) -> Option<&Arc<Meter>> {
        self.meter.as_ref()
    }

    /// Whether [`cut`](Self::cut) or [`poll_cut`](Self::poll_cut) may return anything.
    #[inline]
    pub(crate) fn may_be_cut(&self) -> bool {
        self.meter.as_deref().is_some_and(Meter::may_be_cut)
    }

    /// The crossed hard limit that ends the work, asked after a piece of it has run.
    ///
    /// Output that is complete (`finished`) is kept, unless an operation was refused to the work
    /// that produced it.
    #[inline]
    pub(crate) fn cut(&self, finished: bool) -> Option<Cut> {
        let meter = self.meter.as_deref().filter(|meter| meter.may_be_cut())?;
        let cut = meter.cut()?;
        (!finished || meter.is_refused()).then(|| cut.clone())
    }

    /// The crossed hard limit that ends the work while it waits: a task that it spawned may cross
    /// one. If there is none yet, the current task is woken when there is.
    #[inline]
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<Cut> {
        self.meter.as_deref().filter(|meter| meter.may_be_cut())?.poll_cut(cx).cloned()
    }

    /// Cuts the work because its deadline has passed.
    ///
    /// # Panics
    ///
    /// Panics if the work was finished already, which callers rule out: its timer is gone by then.
    pub(crate) fn cut_at_deadline(&self) -> Cut {
        self.meter.as_ref().expect("unfinished work has an account").cut_at_deadline()
    }

    /// Cuts the work because its body had no frame for `waited`; `last` is what it was waiting for.
    ///
    /// # Panics
    ///
    /// As [`cut_at_deadline`](Self::cut_at_deadline).
    #[cfg(feature = "http")]
    pub(crate) fn cut_idle(&self, waited: Duration, last: Option<InFlightSince>) -> Cut {
        self.meter.as_ref().expect("unfinished work has an account").cut_idle(waited, last)
    }

    /// Whether commands are in flight that must not be dropped midway, and the work can be polled
    /// on until they end.
    #[cfg(feature = "http")]
    pub(crate) fn has_commands_in_flight(&self) -> bool {
        let meter = self.meter.as_ref().filter(|_| !self.panicked);
        meter.is_some_and(|meter| meter.has_commands_in_flight())
    }

    /// The span in which it was started.
    #[cfg(feature = "http")]
    pub(crate) fn span(&self) -> Option<&tracing::Span> {
        self.meter.as_deref().map(Meter::span)
    }

    /// Ready if no command is in flight that must not be dropped midway; otherwise wakes the task
    /// when none is.
    pub(crate) fn poll_commands(&self, cx: &Context<'_>) -> Poll<()> {
        self.meter.as_ref().map_or(Poll::Ready(()), |meter| meter.poll_commands(cx))
    }

    /// Ends the wall time of the work, though some of it is still polled on.
    pub(crate) fn stop_clock(&self) {
        if let Some(meter) = &self.meter {
            meter.stop_clock();
        }
    }

    /// Until when work that is ended now may be polled on for its commands.
    pub(crate) fn end_of_grace(&self) -> Option<Instant> {
        Instant::now().checked_add(self.meter.as_ref()?.limits().grace)
    }

    /// Runs the destructors of work that is ended from outside: that is cut, or whose future is
    /// dropped.
    pub(crate) fn abandon<T>(&mut self, destructors: impl FnOnce() -> T) -> T {
        if let Some(meter) = &self.meter {
            meter.abandon();
        }
        self.run(destructors)
    }

    /// Reports the end. Only the first call counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if let Some(meter) = self.meter.take() {
            let outcome = if self.panicked { Outcome::Panicked } else { outcome };
            #[cfg(feature = "witness")]
            meter.wait_for_drivers();
            meter.close();
            if report::is_end_of_interest(&meter) {
                memory::aside(|| report::finished(&meter, outcome));
            }
            meter.recycle();
        }
    }
}

/// A piece of the work, which runs from [`enter`](Self::enter) to [`leave`](Self::leave).
///
/// Dropped without [`done`](Self::done) it was unwound by a panic.
pub(crate) struct Running<'a> {
    work: &'a mut Work,
    entry: Entry,
}

impl Running<'_> {
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn enter(&mut self) {
        if self.work.links_left > 0 {
            self.work.link();
        }
        self.entry.enter(&mut self.work.meter);
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn leave(&mut self) {
        self.entry.leave(&mut self.work.meter);
    }

    /// Ends the piece, once its scope was left. Not part of `leave`, since taking `self` there
    /// would copy it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn done(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl Drop for Running<'_> {
    #[cold]
    fn drop(&mut self) {
        self.work.panicked = true;
        self.leave();
    }
}

impl Drop for Work {
    #[inline]
    fn drop(&mut self) {
        if self.meter.is_some() {
            self.finish(Outcome::Cancelled);
        }
    }
}
