//! A future that is a unit of work.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::budget::Budget;
use crate::deadline::Timer;
use crate::error::Cut;
use crate::meter::Origin;
use crate::report::unmeasured::check_task;
use crate::report::{Attributes, Name, Outcome, Reporter};
use crate::scope::{self, Work};

pin_project! {
    /// The future of [`budgeted`](crate::BudgetExt::budgeted).
    #[must_use = "futures do nothing unless polled"]
    pub struct Budgeted<F> {
        // `None` once it has completed: its destructors also have to run inside the scope.
        #[pin]
        future: Option<F>,
        // `None` after the first poll, which starts the work.
        start: Option<Start>,
        work: Option<Work>,
        // Set once the work is cut, while MongoDB commands are in flight that must not be dropped
        // midway.
        cut: Option<Cut>,
        // The deadline of the work; once it is cut, the end of its grace period.
        #[pin]
        timer: Timer,
    }

    impl<F> PinnedDrop for Budgeted<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(work) = this.work {
                work.abandon(|| clear(this.future.as_mut()));
                let cut = this.cut.is_some();
                work.finish(if cut { Outcome::Cut } else { Outcome::Cancelled });
            }
        }
    }
}

struct Start {
    origin: Origin,
    name: Name,
    budget: Budget,
    reporter: Option<Arc<dyn Reporter>>,
}

impl<F> Budgeted<F> {
    pub(crate) fn new(future: F, name: Name, budget: Budget) -> Self {
        // Determined here and not at the first poll, which is outside of the creator's scope if the
        // future is spawned.
        let origin = Origin::inside(scope::current().as_deref());
        let start = Some(Start { origin, name, budget, reporter: None });
        Self { future: Some(future), start, work: None, cut: None, timer: Timer::new(None) }
    }

    /// The future of work that has begun already.
    pub(super) fn started(future: F, work: Work) -> Self {
        let timer = Timer::new(work.deadline());
        Self { future: Some(future), start: None, work: Some(work), cut: None, timer }
    }

    /// Distinguishes this run from others of the same name, in everything that is reported about
    /// it.
    ///
    /// Without effect once the work has started.
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        if let Some(start) = &mut self.start {
            start.origin.attributes = attributes;
        }
        self
    }

    /// Also passes the violations and the usage of this work to a reporter.
    ///
    /// Without effect once the work has started.
    pub fn with_reporter(mut self, to: impl Reporter) -> Self {
        if let Some(start) = &mut self.start {
            start.reporter = Some(Arc::new(to));
        }
        self
    }
}

// Code that is rarely needed, or only after the inner future was polled, is in separate functions.
// Otherwise its temporaries would be on the stack during that poll, once for each level of nested
// work.
impl<F: Future> Budgeted<F> {
    /// Polls the work; `outcome` derives the outcome from the output, if the work is not cut.
    pub(super) fn poll_as(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        outcome: impl FnOnce(&F::Output) -> Outcome,
    ) -> Poll<Result<F::Output, Cut>> {
        let mut this = self.as_mut().project();
        if this.start.is_some() {
            begin(this.start, this.work, this.timer.as_mut());
        }
        if this.cut.is_some() {
            return self.poll_cut(cx);
        }
        let work = this.work.as_mut().expect("started above");
        let polled = run(work, this.future, cx);
        // Most polls end here.
        if polled.is_pending() && !work.may_be_cut() && !this.timer.poll_elapsed(cx) {
            return Poll::Pending;
        }
        self.settle(polled, cx, outcome)
    }

    /// Ends the work if it has completed or is to be cut.
    fn settle(
        self: Pin<&mut Self>,
        polled: Poll<F::Output>,
        cx: &mut Context<'_>,
        outcome: impl FnOnce(&F::Output) -> Outcome,
    ) -> Poll<Result<F::Output, Cut>> {
        let mut this = self.project();
        let work = this.work.as_mut().expect("it was polled");
        let is_pending = polled.is_pending();
        let cut = match (work.cut(!is_pending), polled) {
            (None, Poll::Ready(output)) => {
                work.finish(outcome(&output));
                return Poll::Ready(Ok(output));
            }
            (Some(cut), output) => {
                // The output was produced without something that was refused. It is dropped inside
                // the scope.
                work.run(|| drop(output));
                cut
            }
            (None, Poll::Pending) => match this.timer.as_mut().poll_elapsed(cx) {
                true => work.cut_at_deadline(),
                false => match work.poll_cut(cx) {
                    Some(cut) => cut,
                    None => return Poll::Pending,
                },
            },
        };
        if is_pending && work.poll_commands(cx).is_pending() {
            work.stop_clock();
            this.timer.set(Timer::new(work.end_of_grace()));
            if !this.timer.poll_elapsed(cx) {
                *this.cut = Some(cut);
                return Poll::Pending;
            }
        }
        work.abandon(|| clear(this.future.as_mut()));
        work.finish(Outcome::Cut);
        Poll::Ready(Err(cut))
    }

    /// Polls work on that was cut, for as long as commands are in flight.
    #[cold]
    fn poll_cut(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<F::Output, Cut>> {
        let mut this = self.project();
        let work = this.work.as_mut().expect("it was polled");
        // Checked before the future is polled, which would begin its next command.
        if work.poll_commands(cx).is_pending() {
            let polled = run(work, this.future.as_mut(), cx);
            if polled.is_pending() && !this.timer.poll_elapsed(cx) {
                return Poll::Pending;
            }
            work.run(|| drop(polled));
        }
        work.abandon(|| clear(this.future.as_mut()));
        work.finish(Outcome::Cut);
        Poll::Ready(Err(this.cut.take().expect("it is cut")))
    }
}

/// Starts the work and its clock.
#[inline(never)]
fn begin(start: &mut Option<Start>, work: &mut Option<Work>, mut timer: Pin<&mut Timer>) {
    let Some(Start { origin, name, budget, reporter }) = start.take() else { return };
    check_task(budget.limits());
    let work = work.insert(Work::start_from(origin, name, budget, reporter));
    timer.set(Timer::new(work.deadline()));
}

impl<F: Future> Future for Budgeted<F> {
    type Output = Result<F::Output, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_as(cx, |_| Outcome::Ok)
    }
}

/// Polls the future inside its scope, and drops it there when it has completed.
fn run<F: Future>(
    work: &mut Work,
    mut future: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    work.run(|| {
        let polling = future.as_mut().as_pin_mut().expect("not polled again after it was done");
        let polled = polling.poll(cx);
        if polled.is_ready() {
            clear(future);
        }
        polled
    })
}

/// Drops the future.
fn clear<F>(mut future: Pin<&mut Option<F>>) {
    future.set(None);
}

impl<F> fmt::Debug for Budgeted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted").finish_non_exhaustive()
    }
}
