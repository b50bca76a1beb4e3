//! A budget for every HTTP request and every background task: database queries, their time, memory,
//! total time and calls to external systems, counted exactly and enforced.
//!
//! For every request and task this crate knows how many statements it ran and how long they took,
//! how much memory and time it used, and which external systems it called. A [`Budget`] says how
//! much of each is allowed. Crossing a soft limit is reported as a [`Violation`] that names the
//! cause; crossing a hard one also cuts the work.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
//! use std::time::Duration;
//! use axum::{Router, body::Body, extract::State, http::Request, routing::get};
//! use request_budget::{Budget, BudgetExt, BudgetLayer, sqlx::Pool};
//! use sqlx::{Sqlite, SqlitePool};
//! use tower::ServiceExt;
//!
//! async fn posts(State(pool): State<Pool<Sqlite>>) -> String {
//!     sqlx::query_scalar("SELECT 'hello'").fetch_one(&pool).await.unwrap()
//! }
//!
//! let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
//! let web = Budget::new()
//!     .queries(20) // soft: reports
//!     .repeated_queries(5) // soft: the same statement more than five times (N+1)
//!     .total_time(Duration::from_secs(1)); // hard: cuts
//! let app = Router::new()
//!     .route("/posts", get(posts))
//!     .with_state(pool.clone())
//!     .layer(BudgetLayer::new(web));
//!
//! let nightly = Budget::new().queries(1_000).total_time(Duration::from_secs(600));
//! tokio::spawn(async move { drop(pool) }.budgeted("send_invoices", nightly));
//!
//! let answer = app.oneshot(Request::get("/posts").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(answer.status(), 200);
//! # Ok(()) }
//! ```
//!
//! # Words
//!
//! * A **unit of work** is one HTTP request, from the call of the service to the end of the
//!   response *body*, or one background task.
//! * Its **scope** is entered on each poll and on drop; what runs inside is charged to it. A scope
//!   inside a scope is charged to both. Spawning leaves the scope, unless the task is carried along
//!   with [`in_current_budget`](BudgetExt::in_current_budget).
//! * **Usage** is what a unit of work has consumed; a **violation** is the report that it crossed
//!   one limit. Each limit of a unit of work is reported once, at the moment of crossing.
//! * A statement is **observed** if it was counted after its execution, as a driver or an ORM
//!   reports it.
//! * A statement is **unmetered** if it was seen but passed through no instrumented connection.
//!
//! "Budget" here is neither tokio's cooperative budget nor tower's retry budget.
//!
//! # What is left of finished work
//!
//! Nothing that grows with the work: no task, no timer, no account. A thread that polls work with a
//! limit on wall time uses one task of its runtime, with one timer for all deadlines of the thread.
//! So tokio's metrics show one additional task for each worker, and one for the thread that blocks
//! on a future, which stay until the runtime ends. The timer may fire once for the deadline of work
//! that has ended, and is not set again then; while a test has paused the clock it is removed at
//! once, so the clock does not advance to that deadline. Work that was begun inside of finished
//! work keeps nothing of it alive, except for carried tasks, which keep its account.
//!
//! # Where to go from here
//!
//! * [`Budget`]: every limit, what it counts and what not. [`Limit`]: soft and hard.
//! * [`http`]: the layer for axum, hyper and any other `Service<http::Request<_>>`.
//! * [`sqlx`]: instrumented pools. [`mongodb`]: an instrumented client. [`redis`]: an instrumented
//!   connection. [`diesel`]: counts what any connection of Diesel executes.
//! * [`db`]: counts statements of other databases and drivers.
//! * [`task`]: background work: any future, [job runners](TaskBudgetLayer), closures, children.
//!   [`ExternalExt`]: calls to external systems.
//! * [`alloc`]: memory, through a global allocator that you install.
//! * [`testing`]: fails CI when a request or a job uses more than it may.
//! * [`report`]: events, reporters of your own, and one that detects [leaks](report::Growth).
//! * [`limitations`]: what a budget cannot do, and the remedies.
//!
//! # Features
//!
//! * `http` (default): the layer. `axum` (default): names requests by the route that axum matched.
//! * `alloc` (default): the counting allocator.
//! * `aws`: makes every call of clients of the AWS SDK an external call.
//! * `diesel`: counts what Diesel and diesel-async execute.
//! * `mongodb`: an instrumented MongoDB client.
//! * `redis`: an instrumented connection to Redis.
//! * `reqwest-middleware`: makes every call of a `reqwest-middleware` client an external call.
//! * `sqlx`: instrumented pools for any database of sqlx. `postgres`, `mysql`, `sqlite`, `any`:
//!   aliases such as `sqlx::PgPool`, and that driver of sqlx.
//! * `witness`: counts, or reports, statements that reach sqlx past the metered pools.
//! * `testing`: measurements and assertions for tests.
//! * `full`: all of them but the drivers of sqlx.
//!
//! None changes what another one counts or cuts.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "alloc")]
pub mod alloc;
mod attributes;
mod budget;
pub mod db;
pub mod deadline;
mod error;
mod escape;
mod ext;
#[cfg(feature = "http")]
pub mod http;
mod key;
mod limit;
pub mod limitations;
mod memory;
mod meter;
pub mod report;
pub mod resource;
pub mod scope;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod usage;
mod violation;
mod writes;

pub use budget::Budget;
#[cfg(feature = "diesel")]
pub use db::diesel;
#[cfg(feature = "mongodb")]
pub use db::mongodb;
#[cfg(feature = "redis")]
pub use db::redis;
#[cfg(feature = "sqlx")]
pub use db::sqlx;
pub use error::Cut;
pub use ext::{BudgetExt, ExternalExt};
#[cfg(feature = "http")]
pub use http::BudgetLayer;
pub use limit::Limit;
pub use resource::Resource;
pub use task::TaskBudgetLayer;
pub use usage::Usage;
pub use violation::{Cause, Severity, Violation};

/// Compiles and runs the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
