//! Instrumented MongoDB: a client whose commands are counted.
//!
//! The driver emits events when it takes a connection from its pool for a command and when it gives
//! it back. That is all that is needed for counts and times, and it costs next to nothing. The
//! names and shapes of commands, which tell repeated ones, are known only from the driver's command
//! events; asking for these makes the driver convert every reply ([`Detail::Commands`]), so ask in
//! tests only.
//!
//! # Examples
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> mongodb::error::Result<()> {
//! use mongodb::bson::{Document, doc};
//! use request_budget::{Budget, BudgetExt, Usage, mongodb::Client};
//!
//! let client = Client::with_uri_str("mongodb://127.0.0.1").await?;
//! let work = async {
//!     // everything the driver's client can do
//!     let posts = client.database("blog").collection::<Document>("posts");
//!     posts.insert_one(doc! { "title": "hello" }).await?;
//!     assert!(posts.find_one(doc! { "title": "hello" }).await?.is_some());
//!     Ok::<_, mongodb::error::Error>(Usage::current())
//! };
//! let usage = work.budgeted("posts", Budget::new()).await.unwrap()?.unwrap();
//! assert_eq!(usage.queries, 2);
//! # Ok(()) }
//! ```
//!
//! # What is counted
//!
//! * **queries**: each command that gets a connection, once: each `getMore`, each retry, and
//!   `commitTransaction` and `abortTransaction` too.
//! * **query time**: from the connection being there to the poll of the work that reads the reply.
//!   What is in flight when the work ends counts up to then.
//! * **connection wait**: from asking for a connection to having it, or not getting it.
//! * **repeated queries**, and the statements of a violation: with [`Detail::Commands`] only. A
//!   command is identified by its name, its collection and the shape of its filter, never by
//!   values.
//! * **rows**: documents in the replies, with [`Detail::Commands`] only.
//! * **transactions**: begun by their first command, with [`Detail::Commands`] only.
//!
//! Not counted: connection set-up, monitoring, and what is sent from tasks of its own when a cursor
//! or a session is dropped (`killCursors`, `abortTransaction`, `killSessions`). Behind a load
//! balancer one connection serves all commands of a cursor, or of a transaction, so these count as
//! one, and go on to their end if the work is cut.
//!
//! # Hard limits
//!
//! A command cannot be refused. The one that crosses a hard limit is sent and completes; then the
//! work is cut, before its next command. Every command waits for the server, so a loop of retries
//! is cut as well.
//!
//! # Memory
//!
//! The driver allocates sessions, cursors and cluster times in the work and frees them in tasks of
//! its own. With version 3.9 of the driver [`retained`](crate::Usage::retained) shows about 2 KB
//! for each command although nothing leaks. [`Growth`](crate::report::Growth) does not count it.
//!
//! # Cancellation
//!
//! The driver's futures must not be dropped midway: a command that is has its connection closed,
//! and the driver warns of worse. So where a request is cut, or its client hangs up, while a
//! command is in flight, the rest of the handler (or of the body) goes on in a task of its own
//! until that command is over, at most for the [`grace_period`](crate::Budget::grace_period); the
//! answer does not wait for it, the report does. A background task that is cut ends that much
//! later. Between two commands of one call (`insert_many` in several batches, a cursor) the work is
//! dropped like any other.
//!
//! * That task is outside every limit on concurrency around the layer, and outside its task-locals:
//!   put layers that set task-locals inside of the budget layer.
//! * Make the first client of the process before the first request: what was begun before there was
//!   one is dropped at once. If it is made inside a unit of work, an event at WARN is emitted, with
//!   the target [`HEALTH`](crate::report::fields::HEALTH). Further clients can be made at any time.
//! * Commands of tasks that were spawned, and carried along, are not waited for; nothing drops
//!   them.
//! * A handler that runs commands concurrently continues for as long as any is in flight.
//! * A transaction that is cut is rolled back, in sessions of [`Client::start_session`]; or
//!   committed, if its commit was in flight, or on its way before the cut was seen. One of the
//!   driver's own sessions may stay open on the server for a while: see [`ClientSession`].
//!
//! A budgeted task that is *dropped* (aborted, or lost to a `select!`) cannot be kept: wait for it.
//! Likewise, [`external`](crate::ExternalExt::external) and `tokio::time::timeout` around a call of
//! the driver do drop it; leave the time of a command to the `total_time` of the work, or to the
//! server (`max_time`).

mod client;
mod events;
mod session;
mod shape;
mod start;

pub use client::{Client, Detail, instrument};
pub use session::ClientSession;
pub use start::{StartSession, StartTransaction};
