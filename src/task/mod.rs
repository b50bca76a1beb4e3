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

mod future;

pub use future::Budgeted;
