//! Instrumented MongoDB: a client whose commands are counted.
//!
//! The driver tells when it takes a connection from its pool for a command and when it gives it back.
//! That is all that is needed for counts and times, and it costs next to nothing. The names and shapes
//! of commands, which tell repeated ones, are known only from the driver's command events; asking for
//! these makes the driver convert every reply ([`Detail::Commands`]), so ask in tests only.
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
//! * **query time**: from the connection being there to its return to the pool. The pool takes it back
//!   in a task of its own, so what keeps the thread busy in between counts as well, and the time of the
//!   last command may be known, and its violation said, only after the work has ended. What is still out
//!   then counts up to then.
//! * **connection wait**: from asking for a connection to having it, or not getting it.
//! * **repeated queries**, and the statements of a violation: with [`Detail::Commands`] only. A command
//!   is told by its name, its collection and the shape of its filter, never by values.
//! * **rows**: documents in the replies, with [`Detail::Commands`] only.
//! * **transactions**: begun by their first command, with [`Detail::Commands`] only.
//!
//! Not counted: connection set-up, monitoring, and the `killCursors` that the driver sends by itself,
//! from a task of its own, when a cursor is dropped. Behind a load balancer one connection serves all
//! commands of a cursor, so these count as one.

mod client;
mod events;
mod shape;

pub use client::{Client, Detail, instrument};
