//! Extension traits for futures.

use std::borrow::Cow;

use crate::budget::Budget;
use crate::deadline::External;
use crate::error::Cut;
use crate::report::Name;
use crate::scope::InCurrentBudget;
use crate::task::{Budgeted, TryBudgeted};

/// Puts futures under a budget.
///
/// See [`task`](crate::task) for background work.
pub trait BudgetExt: Future + Sized {
    /// Makes this future a unit of work of its own, with a name and a budget.
    ///
    /// It starts at the first poll. Inside another unit of work it is charged to both. If it is
    /// created inside one and polled elsewhere, it has an account of its own, and its reports name
    /// the work that began it.
    ///
    /// # Errors
    ///
    /// The output is `Err` when a hard limit cut the work.
    ///
    /// # Cancellation
    ///
    /// If it is dropped before its end, it is reported as cancelled. Its destructors are charged to
    /// it.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// use request_budget::{Budget, BudgetExt};
    ///
    /// let invoices = async { 3 };
    /// let sent = tokio::spawn(invoices.budgeted("send_invoices", Budget::new().queries(100)));
    /// assert_eq!(sent.await.unwrap(), Ok(3));
    /// # }
    /// ```
    fn budgeted(self, name: impl Into<Name>, budget: Budget) -> Budgeted<Self> {
        Budgeted::new(self, name.into(), budget)
    }

    /// Makes this future of a `Result` a unit of work of its own, whose error type also represents
    /// a cut.
    ///
    /// As [`budgeted`](Self::budgeted), with one `Result` instead of two. Work that returns an
    /// error is reported as [`Error`](crate::report::Outcome::Error), not as
    /// [`Ok`](crate::report::Outcome::Ok).
    ///
    /// # Errors
    ///
    /// The error of this future, or the [`Cut`] converted into one.
    ///
    /// # Cancellation
    ///
    /// As with [`budgeted`](Self::budgeted).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// use std::error::Error;
    /// use request_budget::{Budget, BudgetExt};
    ///
    /// async fn invoices() -> Result<u32, Box<dyn Error + Send + Sync>> {
    ///     Ok("3".parse()?)
    /// }
    ///
    /// let sent = invoices().try_budgeted("send_invoices", Budget::new().queries(100)).await;
    /// assert_eq!(sent.unwrap(), 3);
    /// # }
    /// ```
    fn try_budgeted<T, E>(self, name: impl Into<Name>, budget: Budget) -> TryBudgeted<Self>
    where
        Self: Future<Output = Result<T, E>>,
        E: From<Cut>,
    {
        TryBudgeted::new(self.budgeted(name, budget))
    }

    /// Charges this future to the unit of work that is running here, wherever it is polled.
    ///
    /// Spawning breaks the link to the work that spawns; this keeps it. It does not join their
    /// lifetimes: a spawned task continues after the work has ended or was cut. What it uses after
    /// that is in no report, but a limit that it crosses is still reported. Outside of all units of
    /// work it changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// use request_budget::{Budget, BudgetExt, ExternalExt, Usage};
    ///
    /// let work = async {
    ///     let call = async {}.external("payments");
    ///     tokio::spawn(call.in_current_budget()).await.unwrap().unwrap();
    ///     Usage::current().unwrap().external_calls
    /// };
    /// assert_eq!(work.budgeted("order", Budget::new()).await, Ok(1));
    /// # }
    /// ```
    fn in_current_budget(self) -> InCurrentBudget<Self> {
        InCurrentBudget::new(self)
    }
}

impl<F: Future> BudgetExt for F {}

/// Marks calls to external systems.
pub trait ExternalExt: Future + Sized {
    /// Makes this future a call to an external system: counted, timed, and ended by the
    /// [`external_timeout`](Budget::external_timeout) of the unit of work that makes it.
    ///
    /// The call starts at the first poll and belongs to the unit of work that is running there.
    /// It is never given more than what is left of the [`total_time`](Budget::total_time). Outside
    /// every unit of work, or without an `external_timeout`, nothing limits it.
    ///
    /// Only the marked future is bounded. `client.get(url).send()` ends at the headers of the
    /// response, so mark an `async` block that also reads the body.
    ///
    /// Use few names: that of the system, not the address.
    ///
    /// # Errors
    ///
    /// The output is `Err` if the time was up; the call has then been dropped.
    ///
    /// # Cancellation
    ///
    /// A call that is dropped before its end is counted, with the time until then.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use std::time::Duration;
    /// use request_budget::{Budget, BudgetExt, ExternalExt};
    ///
    /// let work = async { std::future::pending::<()>().external("payments").await };
    /// let budget = Budget::new().external_timeout(Duration::from_millis(500));
    /// let error = work.budgeted("order", budget).await.unwrap().unwrap_err();
    /// let cause = "in one external call, limit 500ms: call to \"payments\"";
    /// assert!(error.to_string().contains(cause));
    /// # }
    /// ```
    fn external(self, name: impl Into<Cow<'static, str>>) -> External<Self> {
        External::new(self, name.into())
    }
}

impl<F: Future> ExternalExt for F {}
