//! Background work under a budget.
//!
//! Any future becomes a unit of work by [`budgeted`](crate::BudgetExt::budgeted): counted, measured
//! and limited by the same rules as a request. It holds wherever the future is polled: in
//! `tokio::spawn`, in a `JoinSet`, in a worker's loop, inside a request.
//!
//! | what runs | how |
//! |---|---|
//! | any future | [`.budgeted(name, budget)`](crate::BudgetExt::budgeted) |
//! | a future of a `Result` | [`.try_budgeted(name, budget)`](crate::BudgetExt::try_budgeted): one `Result`, and errors are reported as errors |
//! | jobs of a runner built on tower, as apalis | [`TaskBudgetLayer`] |
//! | a closure, on any thread | [`blocking`], or [`Blocking`] with attributes and a reporter |
//! | children of work that is running | [`spawn`], [`spawn_blocking`], [`carried`], [`carried_with`], [`.in_current_budget()`](crate::BudgetExt::in_current_budget) |
//!
//! [`Attributes`](crate::report::Attributes), such as the id of a job and its attempt, tell one run
//! from another of the same name. [`Growth`](crate::report::Growth) reports a job whose retained
//! memory climbs run after run.
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
//!
//! A worker that is a loop over a channel. Each job is spawned, so that one that panics, which is
//! reported as such, does not end the worker:
//!
//! ```
//! # #[tokio::main] async fn main() {
//! use request_budget::report::Attributes;
//! use request_budget::{Budget, BudgetExt};
//! use tokio::sync::mpsc;
//!
//! async fn resize(image: u64) -> u64 {
//!     image * 2
//! }
//!
//! let (send, mut jobs) = mpsc::channel(16);
//! let worker = tokio::spawn(async move {
//!     let budget = Budget::new().memory(64 << 20);
//!     while let Some(image) = jobs.recv().await {
//!         let job = resize(image)
//!             .budgeted("resize", budget.clone())
//!             .with_attributes(Attributes::new().with("image", image));
//!         match tokio::spawn(job).await {
//!             Ok(Ok(_resized)) => {}
//!             Ok(Err(cut)) => eprintln!("{cut}"),
//!             Err(panic) => eprintln!("{panic}"),
//!         }
//!     }
//! });
//! send.send(7).await.unwrap();
//! drop(send);
//! worker.await.unwrap();
//! # }
//! ```
//!
//! For a periodic job, make each round a unit of work, not the whole loop, which never ends:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! use std::time::Duration;
//! use request_budget::{Budget, BudgetExt};
//!
//! async fn sweep() {}
//!
//! let mut interval = tokio::time::interval(Duration::from_secs(60));
//! for _ in 0..3 {
//!     interval.tick().await;
//!     sweep().budgeted("sweep", Budget::new().queries(5)).await.unwrap();
//! }
//! # }
//! ```
//!
//! # Children
//!
//! A spawned task leaves the work that spawns it, whether by `tokio::spawn`, a `JoinSet`,
//! `spawn_blocking`, a thread, or a library with tasks of its own. Only what carries the budget
//! along is charged to the work. In a `JoinSet`:
//!
//! ```
//! # #[tokio::main] async fn main() {
//! use request_budget::{Budget, BudgetExt, ExternalExt, Usage};
//! use tokio::task::JoinSet;
//!
//! let work = async {
//!     let mut set = JoinSet::new();
//!     for _ in 0..3 {
//!         set.spawn(async { async {}.external("payments").await }.in_current_budget());
//!     }
//!     set.join_all().await;
//!     Usage::current().unwrap().external_calls
//! };
//! assert_eq!(work.budgeted("order", Budget::new()).await, Ok(3));
//! # }
//! ```
//!
//! Carrying does not join lifetimes: a carried task continues after the work has ended, and is in
//! no report from then on. Work that is meant to outlive a request gets an account of its own, by
//! `.budgeted(..)` before it is spawned. The work that began it is then named in
//! [`Violation::begun_by`](crate::Violation::begun_by), in the events, and in
//! [`Report::begun_by`](crate::report::Report::begun_by).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use request_budget::{Budget, BudgetExt, ExternalExt, Limit};
//!
//! let request = async {
//!     let mail = async { async {}.external("mail").await };
//!     tokio::spawn(mail.budgeted("send_mail", Budget::new().external_calls(Limit::hard(0))))
//! };
//! let left_running = request.budgeted("POST /orders", Budget::new()).await.unwrap();
//! let cut = left_running.await.unwrap().unwrap_err();
//! assert_eq!(cut.violation().begun_by.as_deref(), Some("POST /orders"));
//! # }
//! ```
//!
//! For work that is budgeted inside a task that was itself spawned without carrying, none is named.
//!
//! # For a monitor of heartbeats
//!
//! The event at the end of each run (target [`USAGE`](crate::report::fields::USAGE), DEBUG) has its
//! name, start, duration and outcome, under [`WORK`](crate::report::fields::WORK),
//! [`START`](crate::report::fields::START), [`TOTAL_TIME`](crate::report::fields::TOTAL_TIME) and
//! [`OUTCOME`](crate::report::fields::OUTCOME). The monitor has to notice a job that should have
//! run and did not.

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
pub use spawn::{carried, carried_with, spawn, spawn_blocking};
