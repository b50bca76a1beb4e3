//! The methods that every future gets.

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
    /// It starts at the first poll. Inside another unit of work it is charged to both. Made inside one and
    /// polled elsewhere, it keeps an account of its own and says who began it.
    ///
    /// # Errors
    ///
    /// The output is `Err` when a hard limit cut the work.
    ///
    /// # Cancellation
    ///
    /// Dropped before its end it is reported as cancelled; its destructors are charged to it.
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

    /// Makes this future, of a `Result`, a unit of work of its own, and its error the cut's as well.
    ///
    /// As [`budgeted`](Self::budgeted), with one `Result` in place of two, and work that ends in an error
    /// is reported as such, not as [`Ok`](crate::report::Outcome::Ok).
    ///
    /// # Errors
    ///
    /// The error of this future, or the [`Cut`] made into one.
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
    /// Spawning breaks the link to the work that spawns; this keeps it. It does not tie the lives of
    /// the two together: a spawned task runs on when the work has ended or was cut, and what it uses
    /// after the end is in no report, though a limit that it crosses then is still said. Outside every unit of work it changes nothing.
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
    /// What is marked is all that is bounded: around `client.get(url).send()` that is the request up to
    /// the response's headers. Put an `async` block around the reading of the body, too.
    ///
    /// Give few names: the system, not the address.
    ///
    /// # Errors
    ///
    /// The output is `Err` when the time was up; the call has then been dropped.
    ///
    /// # Cancellation
    ///
    /// A call dropped before its end is counted, with the time until then.
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
    /// assert!(error.to_string().contains("in one external call, limit 500ms: call to \"payments\""));
    /// # }
    /// ```
    fn external(self, name: impl Into<Cow<'static, str>>) -> External<Self> {
        External::new(self, name.into())
    }
}

impl<F: Future> ExternalExt for F {}
