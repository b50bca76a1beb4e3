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
//! A metered pool or connection is an executor for every database, without a bound:
//!
//! ```
//! use request_budget::sqlx::Pool;
//! use sqlx::{Database, Executor};
//!
//! async fn vacuum<DB: Database>(pool: &Pool<DB>) -> sqlx::Result<()> {
//!     pool.execute("VACUUM").await.map(drop)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
//! let pool = Pool::from(sqlx::SqlitePool::connect("sqlite::memory:").await?);
//! vacuum(&pool).await
//! # }
//! ```
//!
//! # What is counted
//!
//! Each execution of a statement that is passed to the driver, once, when it is passed: also one
//! that fails or is cancelled. A future or stream that is never polled executes nothing and counts
//! nothing, and so does a query whose arguments cannot be encoded. Of a batch
//! ([`raw_sql`](sqlx::raw_sql) with several statements) each statement of which the driver reports
//! a result counts, under the text of the batch; with `fetch_one` and `fetch_optional`, and where
//! SQLite takes several statements as one prepared query, all of it counts once. Query time is the
//! time spent waiting for the driver; between two rows of a stream only while the next one is
//! waited for.
//!
//! `BEGIN`, `COMMIT`, `ROLLBACK` and savepoints made with `begin`, `commit` and `rollback` are no
//! queries: the first counts as a transaction, the time of all as query time. Executed as
//! statements of your own (`sqlx::query("BEGIN")`) they are queries as any other, and no
//! transactions. No query either is `prepare` or `describe`, nor what the pool does to connect or
//! to test a connection, its hooks (`after_connect`, `before_acquire`) included: these are not
//! [`unmetered`](crate::Usage::unmetered) either. In a hook, what is executed through a
//! [`BorrowedConnection`] is counted, for the work that waits for the connection. A rollback by
//! drop waits for nothing, so it takes no time of the work.
//!
//! # What is refused
//!
//! A statement past a hard limit is not passed to the driver. Its caller gets a
//! [`sqlx::Error::Configuration`] whose source is a [`Cut`], which [`Cut::find`] finds, and the
//! unit of work ends. Helpers that try again what may pass take `Io`, `Tls`, `Protocol`,
//! `PoolTimedOut`, `WorkerCrashed` and some of `Database` for that; a wrong configuration they do
//! not, since waiting does not mend it.
//!
//! A batch is sent as one text, so it is not known beforehand how many statements it holds: past a
//! hard limit its answer is refused, and what it has done by then is done.
//!
//! # Cancellation
//!
//! A connection that is held by work that is cut, or dropped because the client has hung up, or
//! that panics, goes back to its pool clean or is closed, whether that comes in the middle of a
//! statement or between two:
//!
//! * PostgreSQL, MySQL and MariaDB: a task waits 25 ms for the statement in flight, rolls back what
//!   is open, also a `BEGIN` written by hand, and lets go of advisory locks, of those of `GET_LOCK`
//!   and of `LOCK TABLES`. A connection for which this takes longer is closed, and its place in the
//!   pool is free.
//! * What cannot be undone without undoing what your own `after_connect` has set is undone by
//!   closing: settings (`SET`, but not `SET LOCAL`; `set_config`, unless its last argument is the
//!   word `true`), roles, temporary tables, cursors `WITH HOLD`, `LISTEN`, statements prepared by
//!   hand, variables of MySQL, whatever `CALL` and PostgreSQL's `DO` do, and all that may have been
//!   done through [`Connection::unmetered`] (`COPY`). On PostgreSQL most of this is looked for on
//!   the server. What is not seen is a setting that a function makes inside, called by a `SELECT`.
//! * SQLite: transactions are rolled back. In a file, a connection on which there was a `PRAGMA`, a
//!   temporary table or an `ATTACH` is closed. In memory, where to close it could be to lose the
//!   data, temporary objects are dropped and databases are detached; what a `PRAGMA` has set is
//!   kept, and so is what was attached through [`Connection::unmetered`].
//! * A driver that is none of these, and a connection with [`PoolConnection::close_on_drop`]: it is
//!   closed.
//!
//! So a statement that is shorter than 25 ms costs no new connection, however impatient the
//! clients. The cleaning is charged to nobody. Where work ends by itself, also by an error,
//! connections are returned as they are, as without this crate: code that changes a session takes
//! that back on its way out, or has the connection closed by `close_on_drop`.
//!
//! A statement that you drop midway (`timeout`, `select!`) leaves its answer to be read when the
//! connection is used next. The driver of MySQL and MariaDB can take that for the answer to the
//! next statement, and panic. So it is checked first, by three round trips: the next statement is
//! executed as if nothing had been, or it, like all after it, is an [`sqlx::Error::Protocol`] and
//! the connection is closed when it is dropped.
//!
//! When a connection is closed the server may go on with the statement for a while.
//! To bound that, let it look whether the client is still there, or bound every statement:
//!
//! * PostgreSQL 14 and later: `PgConnectOptions::options([("client_connection_check_interval",
//!   "100ms")])` ends the statement when the connection is closed; `statement_timeout` bounds all
//!   of them.
//! * MariaDB: `SET SESSION max_statement_time = 5` (seconds) in `PoolOptions::after_connect`.
//!   MySQL: `max_execution_time` (milliseconds), for SELECT only.
//!
//! A statement of SQLite ends at its next row once its rows are not read any more. One that returns
//! no row for a long time, such as an aggregate over a large table, is **not interrupted**: it runs
//! to its end on the thread of the driver. A connection to a file is closed meanwhile; for one to a
//! database in memory the pool waits.
//!
//! # Transactions that are dropped midway
//!
//! A `begin`, `commit` or `rollback` may be dropped midway: by a cut, by a `timeout` or a `select!`
//! of your own. The next statement on the connection is not inside a transaction that was left
//! open. If it was a savepoint, the `commit` of the transaction around it is either whole or an
//! error (an [`sqlx::Error::Protocol`]), and so is each statement until then: PostgreSQL's driver
//! rolls back too much when a savepoint is dropped midway. Only what is done through
//! [`Connection::unmetered`] right after something that was dropped midway is not safe on MySQL and
//! MariaDB: use the connection itself before.
//!
//! # Your function takes X
//!
//! | it takes | do |
//! |---|---|
//! | `&PgPool`, `PgPool` | import `request_budget::sqlx::PgPool` (feature `postgres`), or write `Pool<Postgres>` |
//! | nothing, but makes the pool | `PgPool::connect(url)` exists; append `.into()` to the pool that `PgPoolOptions` makes |
//! | `impl PgExecutor<'_>`, `impl Executor<'_, Database = Postgres>` | nothing: pass `&pool`, `&mut *conn`, `&mut *tx` |
//! | `&mut PgConnection`, `&mut PgTransaction<'_>` | import ours of the same name |
//! | `&mut PgConnection` of sqlx, in a library | pass `&mut tx` or `&mut conn`: it compiles, but is **not counted** |
//! | nothing, but gets `&mut PgConnection` of sqlx (`after_connect`, `PgListener`) | execute on `&mut BorrowedConnection::new(connection)` |
//! | `impl AsMut<PgConnection>` (`PgAdvisoryLock`) | pass the `PoolConnection` or the transaction: likewise |
//! | `impl Acquire<'_>` (`migrate!().run(..)`) | pass `pool.unmetered()` |
//! | a pool of sqlx (`PgListener::connect_with`, a session store) | pass `pool.unmetered()` |
//! | a pool that a library makes for itself | count it with [`db::SqlxEvents`](crate::db::SqlxEvents) |
//!
//! What is executed on a connection that was passed as one of sqlx is counted by `SqlxEvents` if
//! that is installed. If not, an event in a while warns of it, with the target
//! [`HEALTH`](crate::report::fields::HEALTH). After a cut such a connection is closed, not cleaned.
//!
//! [`sqlx::Acquire`] is not implemented, because it can only return connections that are not
//! metered; the message of the compiler names the alternatives.

mod acquire;
mod address;
#[cfg(any(feature = "any", feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod aliases;
mod borrowed;
mod boxed;
mod changes;
mod clean;
mod connection;
mod control;
mod execution;
mod executor;
mod kind;
mod methods;
mod pool;
mod raw;
mod request;
mod session;
mod stream;
mod transaction;

#[cfg(any(feature = "any", feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use aliases::*;
pub use borrowed::BorrowedConnection;
pub use connection::{Connection, PoolConnection};
pub use pool::Pool;
pub use transaction::Transaction;

use crate::deadline::Refusal;
use crate::error::Cut;

/// Refuses a statement to the caller of the driver, after one yield.
async fn refuse(cut: Cut) -> sqlx::Error {
    refused(Refusal::new(cut).await)
}

/// The error of a statement that was not sent.
///
/// The variant is one that holds an error as its source and that no retry helper takes for
/// transient: not `Io` or `Tls`, which stand for a broken connection, nor `Database`, whose code is
/// asked. `Encode`, `Decode` and `AnyDriverError` are permanent as well, but name a value as the
/// culprit.
fn refused(cut: Cut) -> sqlx::Error {
    sqlx::Error::Configuration(Box::new(cut))
}
