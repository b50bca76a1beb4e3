//! Fails a test when a request or a job uses more than it may.
//!
//! [`measure`] runs a future and records each statement, transaction and external call in it, with
//! the place in your code that it came from. The [`Record`] has assertions; one that fails prints
//! all of it.
//!
//! # Examples
//!
//! A request to an axum service:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use axum::{Router, body::Body, extract::State, http::Request, routing::get};
//! use request_budget::{Budget, sqlx::Pool, testing};
//! use sqlx::{Sqlite, SqlitePool};
//! use tower::ServiceExt;
//!
//! async fn greet(State(pool): State<Pool<Sqlite>>) -> String {
//!     sqlx::query_scalar("SELECT 'hello'").fetch_one(&pool).await.unwrap()
//! }
//!
//! let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await.unwrap());
//! let app = Router::new().route("/", get(greet)).with_state(pool);
//!
//! let request = Request::get("/").body(Body::empty()).unwrap();
//! let record = testing::measure(app.oneshot(request)).await;
//! record.assert_within(Budget::new().queries(1).rows(10));
//! record.assert_no_repeated_statements();
//! assert_eq!(record.into_output().unwrap().status(), 200);
//! # }
//! ```
//!
//! A job, or anything else that is a future:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
//! use request_budget::{Budget, sqlx::Pool, testing};
//! use sqlx::{Sqlite, SqlitePool};
//!
//! async fn send_invoices(pool: &Pool<Sqlite>) -> sqlx::Result<usize> {
//!     Ok(sqlx::query("SELECT 1 UNION SELECT 2").fetch_all(pool).await?.len())
//! }
//!
//! let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
//! let record = testing::measure(send_invoices(&pool)).await;
//! record.assert_queries(1);
//! record.assert_no_external_calls();
//! assert_eq!(record.into_output()?, 2);
//! # Ok(()) }
//! ```
//!
//! The message of a failure:
//!
//! ```text
//! 11 queries, limit 2: 9 too many
//!
//! what it did
//! statements: 11 queries, 20 rows, 3.1ms
//!     10x SELECT name FROM authors WHERE id = ?  <- repeated
//!        10 rows, 2.8ms, longest 410µs
//!        at src/posts.rs:31
//!          called from src/handlers.rs:12
//!      1x SELECT id, author FROM posts LIMIT ?
//!        10 rows, 300µs
//!        at src/handlers.rs:10
//! memory: 12.1 KiB at peak, 0 B retained, 40.2 KiB allocated
//! total: 3.9ms
//!
//! advice
//!   * `SELECT name FROM authors WHERE id = ?` was executed 10 times: fetch all at once, by a join or `WHERE .. = ANY($1)`
//! ```
//!
//! # More data, more queries?
//!
//! An N+1 shows without any number to be chosen: [`scaling`] measures the same work at several
//! sizes of its data, and fails if queries grow with it.
//!
//! # A server and a client
//!
//! What a server does, it does in tasks of its own. A [`Recorder`] carries the measurement there.
//!
//! # Not blind
//!
//! No assertion passes because it saw nothing. One on queries fails, and names the reason,
//!
//! * when statements ran, but none of them through a metered pool or client,
//! * when no metered pool or client exists in the process at all,
//! * when statements that may be the work's own ran in other tasks of the same runtime, whether it
//!   executed some itself or not: see [what is suspected](#what-is-suspected),
//! * when tasks that it has carried along were still running at its end,
//! * when no request of a client that a `Recorder` measures came to its layer.
//!
//! Statements on plain pools of sqlx are seen while work is measured, with their places, and
//! count as queries here. An assertion on memory
//! fails without the [`CountingAllocator`](crate::alloc::CountingAllocator).
//!
//! To see them, `measure` puts a `tracing` subscriber of its own around the one that is there,
//! which hears all as before; only its type cannot be asked for (`Dispatch::downcast_ref`, which
//! some layers that export traces need). It sees the events of sqlx whatever the filter of that
//! one; not if the logging of statements is switched off in the options of the pool, and not where
//! the measured work itself puts another default subscriber in its place: see [what cannot be
//! seen](#what-cannot-be-seen).
//!
//! # What cannot be seen
//!
//! An assertion that passes, and may have missed something, warns of it on standard error, once a
//! record, past the capture of the harness. Each warning names the place of the assertion and what
//! to do:
//!
//! * the work was woken by a client of redis, MongoDB or HTTP, or by a socket, while nothing that
//!   is counted was in flight: a client that is not wrapped, or a call that is not marked with
//!   [`external`](crate::ExternalExt::external),
//! * it spawned a task that it did not carry along: what plain pools do there is not seen,
//! * a thread or a runtime of its own executed statements while it was polled, or before it woke
//!   the work,
//! * a task that existed before executed some, and then woke the work: an actor,
//! * a response had a streamed body that the measured future did not read,
//! * the work returned a future, or executed nothing of which an upper bound is asserted,
//! * it put a default subscriber of its own in the place of the measurement's,
//! * the program is stripped of its symbols, so that none of the first four can be detected: once
//!   per process.
//!
//! So does a [`Record`] that is dropped, and of which nothing was asserted or read.
//!
//! The warnings go by the stacks of those who wake the work. Nothing warns of
//!
//! * a plain client whose answer comes through a task of your own, or through `join_all` with
//!   something that is counted,
//! * what other tasks of the work wait for: only the measured future itself is watched,
//! * a future of your own that is made and dropped, beside statements that are executed: the
//!   compiler warns of it,
//! * a plain pool of sqlx under a default subscriber that was made before the measurement, and in
//!   which nothing of this library runs,
//! * a streamed body without a [`BudgetLayer`](crate::BudgetLayer) around it.
//!
//! # What is suspected
//!
//! A task that is spawned without being carried along leaves the measurement, and tokio does not
//! say who spawned it. So a statement that ran meanwhile in the same runtime, in no measured work,
//! is suspected to be part of it, and is in [`Record::elsewhere`], where it ran
//!
//! * in a task that was spawned while the measured work was polled (`spawn_blocking` is one as
//!   well), unless it is a job with a budget of its own,
//! * in a later task, if the measured work had spawned one that may have spawned it,
//! * in a thread that was begun later and has but a handle of the runtime,
//! * in a server of HTTP, unless a `Recorder` has seen the requests of the measured work.
//!
//! Not suspected is what ran in tasks and threads that were there before, in other tests, whether
//! these measure or not, in other units of work and in what these spawned; so a background poller
//! and tests on a shared runtime fail nobody. Where others spawn tasks on another thread at the
//! very moment at which the measured work is polled, neither can be excluded: declare what is no
//! part of it by [`unrelated`]. An actor that was there before is not seen: carry its messages
//! along, or measure it by itself.
//!
//! # A paused clock
//!
//! Times go by the clock of tokio, so `start_paused` measures in them what a test lets pass. But a
//! paused clock jumps ahead whenever all of the runtime waits, for a database as well, and then
//! pools time out, metered or not. `PoolOptions::test_before_acquire(false)` helps, with
//! connections that exist before it is paused.
//!
//! # Snapshots
//!
//! A [`Record`] is `Serialize`, with what is the same in each run. With `insta`, any change
//! to the queries of a request is a diff to be reviewed:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # use request_budget::{db::Query, testing};
//! let work = async { drop(Query::start("GET user:*")) };
//! let record = testing::measure(work).await;
//! insta::assert_json_snapshot!(record, @r#"
//! {
//!   "queries": 1,
//!   "rows": 0,
//!   "transactions": 0,
//!   "statements": [
//!     {
//!       "text": "GET user:*",
//!       "executions": 1,
//!       "rows": 0
//!     }
//!   ],
//!   "external_calls": [],
//!   "unmetered": []
//! }
//! "#);
//! # }
//! ```
//!
//! # A whole suite
//!
//! The [`Ratchet`] holds each request and job of all tests against a committed file.
//!
//! # Places
//!
//! The place of a statement is the line of its `.await`, with those that called it, up to where the
//! task was spawned. Code of dependencies and of the standard library is left out. Needs debug
//! info: `debug = "line-tables-only"` is enough, and tests have it unless a profile says otherwise.
//! A program that is stripped of its symbols cannot tell unmetered statements of SQLite either;
//! what finds none then fails. The place of memory is where the work was at its peak, if that was
//! more than 64 KiB.
//!
//! On GitHub, where `GITHUB_ACTIONS` is `true`, a failure is also printed as an annotation of the
//! line. Colour is used where standard output and error are terminals, unless `NO_COLOR` is set.
//!
//! # Performance
//!
//! Not for production: each statement of measured work costs some microseconds for its place, and
//! the events of sqlx are made, whose texts are part of the memory of the work (not with SQLite,
//! which makes them on another thread). Places are looked up to be printed, and where an assertion
//! passes on work that was woken while nothing that is counted was in flight; that takes about a
//! second in the first such test, and holds up the statements of tests beside it. That look-up
//! happens in the measured work where it asks for `tracing::Span::current()` by itself, or has
//! SQLite execute an unmetered statement.

mod advice;
mod assertions;
mod attribution;
mod dialect;
mod doubts;
mod github;
mod measure;
mod message;
mod observer;
mod ratchet;
mod record;
mod repetitions;
mod scaling;
#[cfg(feature = "http")]
mod server;
mod site;
mod statement;
mod tickets;
mod unrelated;
mod warning;
mod watched;

pub use measure::measure;
pub use ratchet::{Comparison, Ratchet};
pub use record::{CallSite, ExternalCall, Record, Statement};
pub use scaling::{Scaling, scaling};
#[cfg(feature = "http")]
pub use server::{Recorder, RecorderBody, RecorderFuture, RecorderLayer, RecorderService};
pub use site::Place;
pub use unrelated::{Unrelated, unrelated};
