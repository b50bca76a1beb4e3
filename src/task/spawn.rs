//! Children: what goes on elsewhere and is still charged to the work that began it.

use tokio::task::{self, JoinHandle};

use crate::ext::BudgetExt;
use crate::scope;

/// Spawns a task that is charged to the unit of work which is running here.
///
/// The same as `tokio::spawn(future.in_current_budget())`; see
/// [`in_current_budget`](BudgetExt::in_current_budget) for what that does and does not do.
///
/// # Panics
///
/// Outside a tokio runtime, as [`tokio::spawn`] does.
///
/// # Cancellation
///
/// As with any task of tokio it runs on when the handle is dropped. What it uses after the unit of work has
/// ended is in no report.
///
/// # Examples
///
/// ```
/// # #[tokio::main] async fn main() {
/// use request_budget::{Budget, BudgetExt, ExternalExt, Usage, task};
///
/// let work = async {
///     let call = task::spawn(async {}.external("payments"));
///     call.await.unwrap().unwrap();
///     Usage::current().unwrap().external_calls
/// };
/// assert_eq!(work.budgeted("order", Budget::new()).await, Ok(1));
/// # }
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(future.in_current_budget())
}

/// Runs a closure on a thread for blocking work, charged to the unit of work which is running here.
///
/// The same as [`tokio::task::spawn_blocking`] of a [`carried`] closure.
///
/// # Panics
///
/// Outside a tokio runtime, as [`tokio::task::spawn_blocking`] does.
///
/// # Cancellation
///
/// Nothing ends a closure from outside: it runs on when the work has ended or was cut. Inside it a
/// [`checkpoint`](super::checkpoint) tells whether that is so.
///
/// # Examples
///
/// ```
/// # #[tokio::main] async fn main() {
/// use request_budget::{Budget, BudgetExt, Usage, task};
///
/// let work = async {
///     let hash = task::spawn_blocking(|| Usage::current().is_some());
///     hash.await.unwrap()
/// };
/// assert_eq!(work.budgeted("sign_up", Budget::new()).await, Ok(true));
/// # }
/// ```
#[track_caller]
pub fn spawn_blocking<F, T>(work: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    task::spawn_blocking(carried(work))
}

/// Makes a closure that is charged to the unit of work which is running here, wherever it is called.
///
/// What [`in_current_budget`](BudgetExt::in_current_budget) is for futures: for threads, thread pools and
/// callbacks. Dropped without being called, what it holds is dropped inside that work as well. Outside
/// every unit of work it changes nothing.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use request_budget::{Budget, BudgetExt, Usage, task};
///
/// let work = async {
///     let counted = task::carried(|| Usage::current().is_some());
///     std::thread::spawn(counted).join().unwrap()
/// };
/// assert_eq!(work.budgeted("sign_up", Budget::new()).await, Ok(true));
/// # }
/// ```
pub fn carried<F, T>(work: F) -> impl FnOnce() -> T + use<F, T>
where
    F: FnOnce() -> T,
{
    let carried = scope::Carried::new(work);
    move || carried.call()
}
