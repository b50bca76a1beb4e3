//! The unit of work that is running on this thread right now: its scope.
//!
//! A scope is entered on every poll of a budgeted future or body, and while it is dropped, because
//! destructors query and free memory too. It is left again at the end of each, also by a panic.
//! Spawning leaves it: a task that is to be charged to the work that spawned it is wrapped in
//! [`in_current_budget`](crate::BudgetExt::in_current_budget).

mod carried;
mod current;
mod running;
mod work;

pub(crate) use carried::Carried;
pub use carried::InCurrentBudget;
#[cfg(feature = "mongodb")]
pub(crate) use carried::is_carried;
#[cfg(all(feature = "testing", feature = "http"))]
pub(crate) use carried::within;
#[cfg(feature = "witness")]
pub(crate) use current::is_any as is_running;
#[cfg(any(feature = "http", feature = "sqlx"))]
pub(crate) use current::is_current;
pub(crate) use current::{allocated_in_poll, checkpoint, current, is_refused_often};
pub(crate) use work::Work;
