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

/// A unit of work: owned by the future, later the body, that runs it, and reported exactly once.
///
/// Dropped before it was finished, it was cancelled, or a panic went through it.
#[derive(Debug)]
pub(crate) struct Work {
    /// Taken while entered, and for good once finished.
    meter: Option<Arc<Meter>>,
    /// A piece of it has panicked.
    panicked: bool,
    /// For so many pieces more it is not settled inside which work this one runs: a service may be called
    /// where its future is not polled.
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

    /// Starts work of which it is known which run it is, and in which other work it was made.
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

    /// Such a piece, to be run between [`enter`](Running::enter) and [`leave`](Running::leave): for what would be
    /// copied into a closure and out of it.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn piece(&mut self) -> Running<'_> {
        Running { work: self, entry: Entry::Out }
    }

    /// Settles inside which work this one runs, if it is inside any or this is the last piece to look.
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

    /// Whether there is anything to be asked of [`cut`](Self::cut) or [`poll_cut`](Self::poll_cut).
    #[inline]
    pub(crate) fn may_be_cut(&self) -> bool {
        self.meter.as_deref().is_some_and(Meter::may_be_cut)
    }

    /// The hard limit that ends the work now that a piece of it has run.
    ///
    /// A finished answer stands, unless it was made without something that was refused.
    #[inline]
    pub(crate) fn cut(&self, finished: bool) -> Option<Cut> {
        let meter = self.meter.as_deref().filter(|meter| meter.may_be_cut())?;
        let cut = meter.cut()?;
        (!finished || meter.is_refused()).then(|| cut.clone())
    }

    /// The hard limit that ends the work while it waits, crossed by a task that it has spawned; if there is
    /// none yet, that one will wake this task.
    #[inline]
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<Cut> {
        self.meter.as_deref().filter(|meter| meter.may_be_cut())?.poll_cut(cx).cloned()
    }

    /// Ends the work because its time is up.
    ///
    /// # Panics
    ///
    /// Panics if the work was finished already: then no timer rings any more.
    pub(crate) fn time_is_up(&self) -> Cut {
        self.meter.as_ref().expect("unfinished work has an account").time_is_up()
    }

    /// Ends the work because its body had no piece for so long, and waited for this.
    ///
    /// # Panics
    ///
    /// As [`time_is_up`](Self::time_is_up).
    #[cfg(feature = "http")]
    pub(crate) fn was_idle(&self, waited: Duration, last: Option<InFlightSince>) -> Cut {
        self.meter.as_ref().expect("unfinished work has an account").was_idle(waited, last)
    }

    /// Whether commands that must not be dropped half way are under way, in work that can be polled on.
    #[cfg(feature = "http")]
    pub(crate) fn has_commands_under_way(&self) -> bool {
        let meter = self.meter.as_ref().filter(|_| !self.panicked);
        meter.is_some_and(|meter| meter.has_commands_under_way())
    }

    /// The span in which it was started.
    #[cfg(feature = "http")]
    pub(crate) fn span(&self) -> Option<&tracing::Span> {
        self.meter.as_deref().map(Meter::span)
    }

    /// Whether no such command is under way; if any is, the task will be woken when none is.
    pub(crate) fn poll_commands(&self, cx: &Context<'_>) -> Poll<()> {
        self.meter.as_ref().map_or(Poll::Ready(()), |meter| meter.poll_commands(cx))
    }

    /// Notes that the wall time of the work is over, though some of it goes on.
    pub(crate) fn stop_clock(&self) {
        if let Some(meter) = &self.meter {
            meter.stop_clock();
        }
    }

    /// When work that is ended now has to be dropped, commands or not.
    pub(crate) fn end_of_grace(&self) -> Option<Instant> {
        Instant::now().checked_add(self.meter.as_ref()?.limits().grace)
    }

    /// Runs the destructors of work that is ended from outside: cut, or dropped.
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

/// A piece of the work, which is running from [`enter`](Self::enter) to [`leave`](Self::leave).
///
/// Dropped before it is [done](Self::done), it is left by a panic.
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

    /// Ends it, once it is left. Apart from that, as what is handed over is copied where it is looked at.
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
