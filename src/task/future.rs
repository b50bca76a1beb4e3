//! A future that is a unit of work.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::budget::Budget;
use crate::deadline::Timer;
use crate::error::Cut;
use crate::report::{Name, Outcome, Reporter};
use crate::scope::Work;

pin_project! {
    /// The future of [`budgeted`](crate::BudgetExt::budgeted).
    #[must_use = "futures do nothing unless polled"]
    pub struct Budgeted<F> {
        // `None` once it is done: its destructors run inside the scope as well.
        #[pin]
        future: Option<F>,
        state: State,
        #[pin]
        timer: Timer,
    }

    impl<F> PinnedDrop for Budgeted<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let State::Started { work } = this.state {
                work.abandon(|| this.future.set(None));
            }
        }
    }
}

enum State {
    New { name: Name, budget: Budget, reporter: Option<Arc<dyn Reporter>> },
    Started { work: Work },
}

impl<F> Budgeted<F> {
    pub(crate) fn new(future: F, name: Name, budget: Budget) -> Self {
        let state = State::New { name, budget, reporter: None };
        Self { future: Some(future), state, timer: Timer::new(None) }
    }

    /// Hands the violations and the usage of this work to a reporter as well.
    ///
    /// Without effect once the work has started.
    pub fn with_reporter(mut self, to: impl Reporter) -> Self {
        if let State::New { reporter, .. } = &mut self.state {
            *reporter = Some(Arc::new(to));
        }
        self
    }
}

impl<F: Future> Future for Budgeted<F> {
    type Output = Result<F::Output, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let State::New { name, budget, reporter } = this.state {
            let work = Work::start(name.clone(), budget.clone(), reporter.take());
            this.timer.set(Timer::new(work.deadline()));
            *this.state = State::Started { work };
        }
        let State::Started { work } = this.state else { unreachable!("started above") };

        let polled = work.run(|| {
            let future = this.future.as_mut().as_pin_mut();
            let polled = future.expect("not polled again after it was done").poll(cx);
            if polled.is_ready() {
                this.future.set(None);
            }
            polled
        });
        let cut = match (work.cut(polled.is_ready()), polled) {
            (None, Poll::Ready(output)) => {
                work.finish(Outcome::Ok);
                return Poll::Ready(Ok(output));
            }
            (Some(cut), output) => {
                // Made without what was refused; it belongs to the work, as an answer does.
                work.run(|| drop(output));
                cut
            }
            (None, Poll::Pending) => match this.timer.poll_elapsed(cx) {
                true => work.time_is_up(),
                false => return Poll::Pending,
            },
        };
        work.abandon(|| this.future.set(None));
        work.finish(Outcome::Cut);
        Poll::Ready(Err(cut))
    }
}

impl<F> fmt::Debug for Budgeted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted").finish_non_exhaustive()
    }
}
