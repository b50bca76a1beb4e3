//! A future of a `Result` that is a unit of work.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::Budgeted;
use crate::error::Cut;
use crate::report::{Attributes, Outcome, Reporter};

pin_project! {
    /// The future of [`try_budgeted`](crate::BudgetExt::try_budgeted), and of a
    /// [`TaskBudgetService`](super::TaskBudgetService).
    #[must_use = "futures do nothing unless polled"]
    pub struct TryBudgeted<F> {
        #[pin]
        inner: Budgeted<F>,
    }
}

impl<F> TryBudgeted<F> {
    pub(crate) fn new(inner: Budgeted<F>) -> Self {
        Self { inner }
    }

    /// Adds attributes to everything that is reported about this run, which tell it from others of
    /// the same name.
    ///
    /// It has no effect once the work has started.
    pub fn with_attributes(self, attributes: Attributes) -> Self {
        Self { inner: self.inner.with_attributes(attributes) }
    }

    /// Passes the violations and the usage of this work to a reporter as well.
    ///
    /// It has no effect once the work has started.
    pub fn with_reporter(self, to: impl Reporter) -> Self {
        Self { inner: self.inner.with_reporter(to) }
    }
}

impl<F, T, E> Future for TryBudgeted<F>
where
    F: Future<Output = Result<T, E>>,
    E: From<Cut>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let outcome = |output: &Result<T, E>| match output {
            Ok(_) => Outcome::Ok,
            Err(_) => Outcome::Error,
        };
        Poll::Ready(
            ready!(self.project().inner.poll_as(cx, outcome)).unwrap_or_else(|cut| Err(cut.into())),
        )
    }
}

impl<F> fmt::Debug for TryBudgeted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryBudgeted").finish_non_exhaustive()
    }
}
