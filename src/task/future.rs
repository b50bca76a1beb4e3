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
use crate::scope::Work;

pin_project! {
    /// The future of [`budgeted`](crate::BudgetExt::budgeted).
    #[must_use = "futures do nothing unless polled"]
    pub struct Budgeted<F> {
        // `None` once it is done: its destructors run inside the scope as well.
        #[pin]
        future: Option<F>,
        // Until the first poll.
        start: Option<Start>,
        work: Option<Work>,
        // Once the work is cut, while commands are under way that must not be dropped half way.
        cut: Option<Cut>,
        // Rings when the time is up; once the work is cut, when its grace is over.
        #[pin]
        timer: Timer,
    }

    impl<F> PinnedDrop for Budgeted<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(work) = this.work {
                work.abandon(|| this.future.set(None));
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
        // Asked where it is made: it may be spawned, and first polled where nothing tells any more.
        let origin = Origin::here();
        let start = Some(Start { origin, name, budget, reporter: None });
        Self { future: Some(future), start, work: None, cut: None, timer: Timer::new(None) }
    }

    /// Work that has begun already.
    pub(super) fn started(future: F, work: Work) -> Self {
        let timer = Timer::new(work.deadline());
        Self { future: Some(future), start: None, work: Some(work), cut: None, timer }
    }

    /// Tells this run from others of the same name, in all that is reported of it.
    ///
    /// Without effect once the work has started.
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        if let Some(start) = &mut self.start {
            start.origin.attributes = attributes;
        }
        self
    }

    /// Hands the violations and the usage of this work to a reporter as well.
    ///
    /// Without effect once the work has started.
    pub fn with_reporter(mut self, to: impl Reporter) -> Self {
        if let Some(start) = &mut self.start {
            start.reporter = Some(Arc::new(to));
        }
        self
    }
}

impl<F: Future> Budgeted<F> {
    /// Polls it; how work that was not cut has ended is told by its output.
    pub(super) fn poll_as(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        outcome: impl FnOnce(&F::Output) -> Outcome,
    ) -> Poll<Result<F::Output, Cut>> {
        let mut this = self.project();
        if let Some(Start { origin, name, budget, reporter }) = this.start.take() {
            check_task(budget.limits());
            let work = this.work.insert(Work::start_from(origin, name, budget, reporter));
            this.timer.set(Timer::new(work.deadline()));
        }
        let work = this.work.as_mut().expect("started above");
        let cut = match this.cut {
            None => {
                let polled = run(work, this.future.as_mut(), cx);
                let is_pending = polled.is_pending();
                // Most polls end here.
                if is_pending && !work.may_be_cut() && !this.timer.as_mut().poll_elapsed(cx) {
                    return Poll::Pending;
                }
                let cut = match (work.cut(!is_pending), polled) {
                    (None, Poll::Ready(output)) => {
                        work.finish(outcome(&output));
                        return Poll::Ready(Ok(output));
                    }
                    (Some(cut), output) => {
                        // Made without what was refused; it belongs to the work, as an answer does.
                        work.run(|| drop(output));
                        cut
                    }
                    (None, Poll::Pending) => match this.timer.as_mut().poll_elapsed(cx) {
                        true => work.time_is_up(),
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
                cut
            }
            Some(cut) => {
                // Asked before the future is polled, which would begin its next command.
                if work.poll_commands(cx).is_pending() {
                    let polled = run(work, this.future.as_mut(), cx);
                    if polled.is_pending() && !this.timer.poll_elapsed(cx) {
                        return Poll::Pending;
                    }
                    work.run(|| drop(polled));
                }
                cut.clone()
            }
        };
        work.abandon(|| this.future.set(None));
        work.finish(Outcome::Cut);
        Poll::Ready(Err(cut))
    }
}

impl<F: Future> Future for Budgeted<F> {
    type Output = Result<F::Output, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_as(cx, |_| Outcome::Ok)
    }
}

/// Polls the future inside its scope, and drops it there when it is done.
fn run<F: Future>(
    work: &mut Work,
    mut future: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    work.run(|| {
        let polled =
            future.as_mut().as_pin_mut().expect("not polled again after it was done").poll(cx);
        if polled.is_ready() {
            future.set(None);
        }
        polled
    })
}

impl<F> fmt::Debug for Budgeted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted").finish_non_exhaustive()
    }
}
