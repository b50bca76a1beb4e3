//! Instrumented sqlx: pools, connections and transactions that count what passes through them.
//!
//! Wrap the pool where it is made; the code that uses it stays as it is. `&pool`, `&mut *conn` and
//! `&mut *tx` are executors of the same database, so `query!`, `query_as!` and functions that are
//! generic over `impl Executor<'_>` or `impl PgExecutor<'_>` accept them.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
//! use request_budget::{Budget, BudgetExt, Usage, sqlx::Pool};
//! use sqlx::SqlitePool;
//!
//! let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
//! let work = async {
//!     let mut tx = pool.begin().await?;
//!     sqlx::query("CREATE TABLE posts (title TEXT)").execute(&mut *tx).await?;
//!     sqlx::query("INSERT INTO posts VALUES ($1)").bind("hello").execute(&mut *tx).await?;
//!     tx.commit().await?;
//!     let titles: Vec<String> =
//!         sqlx::query_scalar("SELECT title FROM posts").fetch_all(&pool).await?;
//!     assert_eq!(titles, ["hello"]);
//!     Ok::<_, sqlx::Error>(Usage::current())
//! };
//! let usage = work.budgeted("posts", Budget::new()).await.unwrap()?.unwrap();
//! assert_eq!((usage.queries, usage.transactions, usage.rows), (3, 1, 1));
//! # Ok(()) }
//! ```
//!
//! # Code that is generic over the database
//!
//! Name the database where a function is called that is generic over it:
//!
//! ```
//! use request_budget::sqlx::Pool;
//! use sqlx::{Database, Executor, Sqlite};
//!
//! async fn vacuum<DB: Database>(pool: &Pool<DB>) -> sqlx::Result<()>
//! where
//!     for<'c> &'c Pool<DB>: Executor<'c, Database = DB>,
//! {
//!     pool.execute("VACUUM").await.map(drop)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
//! let pool = Pool::from(sqlx::SqlitePool::connect("sqlite::memory:").await?);
//! vacuum::<Sqlite>(&pool).await
//! # }
//! ```
//!
//! Left to infer it, rustc fails with E0275, "overflow evaluating the requirement .. `Connection<_>: Executor`": it looks
//! for one of our connections in one of ours, and so on. A function that is generic over an `impl Executor<'_>` and a type with `DB` as its
//! parameter need no name.
//!
//! # What is counted
//!
//! Each execution of a statement that is handed to the driver, once, when it is handed over: also one
//! that fails or is cancelled. A future or stream that is never polled executes nothing and counts
//! nothing, and so does a query whose arguments cannot be encoded. Of a batch
//! ([`raw_sql`](sqlx::raw_sql) with several statements) each statement of which the driver reports a
//! result counts, under the text of the batch; with `fetch_one` and `fetch_optional`, and where SQLite
//! takes several statements as one prepared query, all of it counts once. Query time is the time spent waiting for the driver;
//! between two rows of a stream only while the next one is waited for.
//!
//! `BEGIN`, `COMMIT`, `ROLLBACK` and savepoints made with `begin`, `commit` and `rollback` are
//! no queries: the first counts as a transaction, the time of all as query time. Neither is
//! `prepare`, nor what the pool does to connect or to test a connection. A rollback by drop waits for
//! nothing, so it takes no time of the work.
//!
//! # What is refused
//!
//! A statement past a hard limit is not handed to the driver. Its caller gets a
//! [`sqlx::Error::Configuration`] whose source is a [`Cut`], which [`Cut::find`] finds, and the unit of work
//! ends. Helpers that try again what may pass take `Io`, `Tls`, `Protocol`, `PoolTimedOut`, `WorkerCrashed` and
//! some of `Database` for that; a wrong configuration they do not, since waiting does not mend it.
//!
//! # Cancellation
//!
//! A statement whose unit of work is cut, or dropped because the client has hung up, does not hold its
//! place in the pool (PostgreSQL, MySQL and MariaDB): the connection is closed instead of given back,
//! and the server rolls an open transaction back. The server may go on with the statement for a while.
//! To bound that, let it look whether the client is still there, or bound every statement:
//!
//! * PostgreSQL 14 and later: `PgConnectOptions::options([("client_connection_check_interval", "100ms")])`
//!   ends the statement when the connection is closed; `statement_timeout` bounds all of them.
//! * MariaDB: `SET SESSION max_statement_time = 5` (seconds) in `PoolOptions::after_connect`. MySQL:
//!   `max_execution_time` (milliseconds), for SELECT only.
//!
//! With SQLite, and with sqlx's `Any`, the connection goes back to the pool.
//!
//! # What is not here
//!
//! [`sqlx::Acquire`] is not implemented, because it can only hand out connections that are not
//! metered; the compiler says so where it is asked for. For what needs sqlx's own types (migrations, `LISTEN`, `COPY`) there is
//! [`Pool::unmetered`] and [`Connection::unmetered`].

mod acquire;
mod boxed;
mod changes;
mod clean;
mod connection;
mod control;
mod execution;
mod executor;
mod kind;
mod pool;
mod request;
mod stream;
mod transaction;

pub use connection::{Connection, PoolConnection};
pub use pool::Pool;
pub use transaction::Transaction;

use crate::error::Cut;

/// Says to the caller of the driver that its statement was not sent.
///
/// The variant is one that holds an error as its source and that no retry helper takes for transient: not `Io`
/// or `Tls`, which stand for a broken connection, nor `Database`, whose code is asked. `Encode`, `Decode` and
/// `AnyDriverError` are permanent as well, but name a value as the culprit.
fn refuse(cut: Cut) -> sqlx::Error {
    sqlx::Error::Configuration(Box::new(cut))
}
