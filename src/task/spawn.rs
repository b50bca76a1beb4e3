//! Children: tasks and closures that run elsewhere and are charged to the work that began them.

use tokio::task::{self, JoinHandle};

use crate::scope;
use crate::scope::InCurrentBudget;

/// Spawns a task that is charged to the unit of work which is running here.
///
/// The same as `tokio::spawn(future.in_current_budget())`; see
/// [`in_current_budget`](crate::BudgetExt::in_current_budget) for what that does and does not do.
///
/// # Panics
///
/// Outside a tokio runtime, as [`tokio::spawn`] does.
///
/// # Cancellation
///
/// As any tokio task it continues if the handle is dropped. What it uses after the unit of work has
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
    tokio::spawn(InCurrentBudget::new(future))
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
/// A closure cannot be ended from outside: it continues after the work has ended or was cut. In the
/// closure, [`checkpoint`](super::checkpoint) returns an error once a hard limit has cut the work.
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

/// Makes a closure that is charged to the unit of work which is running here, wherever it is
/// called.
///
/// It does for closures what [`in_current_budget`](crate::BudgetExt::in_current_budget) does for
/// futures: use it for threads, thread pools and callbacks. If the closure is dropped without being
/// called, its captures are dropped inside that work as well. Outside of all units of work it
/// changes nothing.
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

/// As [`carried`], for a closure that is handed something: a connection by a pool that runs
/// closures on threads of its own.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use request_budget::{Budget, BudgetExt, Usage, task};
///
/// /// What `deadpool_diesel::sqlite::Object::interact` and others are like.
/// fn interact<T: Send>(work: impl FnOnce(&mut u32) -> T + Send) -> T {
///     std::thread::scope(|threads| threads.spawn(|| work(&mut 7)).join().unwrap())
/// }
///
/// let work = async {
///     interact(task::carried_with(|connection: &mut u32| {
///         (*connection, Usage::current().is_some())
///     }))
/// };
/// assert_eq!(work.budgeted("sign_up", Budget::new()).await, Ok((7, true)));
/// # }
/// ```
pub fn carried_with<F, A, T>(work: F) -> impl FnOnce(&mut A) -> T + use<F, A, T>
where
    F: FnOnce(&mut A) -> T,
    A: ?Sized,
{
    let carried = scope::Carried::new(work);
    move |argument: &mut A| carried.call_by(|work| work(argument))
}
