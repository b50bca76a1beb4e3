//! Background work under a budget.
//!
//! Any future becomes a unit of work by [`budgeted`](crate::BudgetExt::budgeted): counted, measured
//! and limited by the same rules as a request.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! use std::time::Duration;
//! use request_budget::{Budget, BudgetExt, Resource};
//!
//! let nightly = Budget::new().queries(500).total_time(Duration::from_secs(600));
//! let job = tokio::time::sleep(Duration::from_secs(3600)).budgeted("send_invoices", nightly);
//! let cut = tokio::spawn(job).await.unwrap().unwrap_err();
//! assert_eq!(cut.violation().resource, Resource::TotalTime);
//! # }
//! ```

mod blocking;
mod fallible;
mod future;
mod layer;
mod policy;
mod spawn;

pub use blocking::{Blocking, blocking, checkpoint};
pub use fallible::TryBudgeted;
pub use future::Budgeted;
pub use layer::{TaskBudgetLayer, TaskBudgetService};
pub use policy::{Describe, JobNaming, JobPolicy};
pub use spawn::{carried, spawn, spawn_blocking};
