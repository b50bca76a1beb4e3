//! Connections of sqlx that belong to somebody else.

use std::fmt;

use sqlx::{Database, Executor};

use super::session::{Handle, Session};
use crate::report::unmeasured::statements_are_metered;

/// A metered view of a connection of sqlx that belongs to somebody else: what is executed on it is
/// counted, and refused past a hard limit.
///
/// For code that gets sqlx's own `&mut PgConnection`: a hook of the pool
/// ([`after_connect`](sqlx::pool::PoolOptions::after_connect)), the connection of a
/// [`PgListener`](sqlx::postgres::PgListener), a function or trait of a library. `&mut` of it is
/// the executor.
///
/// The connection is not this crate's to give back or to close. So it is not cleaned after a cut,
/// as one of a [`Pool`](super::Pool) is: whoever owns it uses it next as the driver leaves it.
/// There is no `begin`: of a transaction of sqlx, which is not counted, pass the connection (`&mut *tx`)
/// and its statements are.
///
/// # Cancellation
///
/// A statement that is dropped midway continues; the driver waits for its end when the connection
/// is used next, as without this crate.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
/// use request_budget::{Budget, BudgetExt, Usage, sqlx::BorrowedConnection};
/// use sqlx::{Connection, SqliteConnection};
///
/// async fn save(connection: &mut SqliteConnection) -> sqlx::Result<()> {
///     let mut connection = BorrowedConnection::new(connection);
///     sqlx::query("CREATE TABLE posts (title TEXT)").execute(&mut connection).await?;
///     sqlx::query("INSERT INTO posts VALUES ('hello')").execute(&mut connection).await?;
///     Ok(())
/// }
///
/// let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
/// let work = async {
///     save(&mut connection).await?;
///     Ok::<_, sqlx::Error>(Usage::current().unwrap())
/// };
/// assert_eq!(work.budgeted("save", Budget::new()).await.unwrap()?.queries, 2);
/// # Ok(()) }
/// ```
pub struct BorrowedConnection<'c, DB: Database> {
    raw: &'c mut DB::Connection,
    session: Session<DB>,
}

impl<'c, DB: Database> BorrowedConnection<'c, DB> {
    /// Counts the statements that are executed on this connection through the view.
    pub fn new<C>(connection: &'c mut C) -> Self
    where
        DB: Database<Connection = C>,
        C: sqlx::Connection<Database = DB>,
        for<'e> &'e mut C: Executor<'e, Database = DB>,
    {
        statements_are_metered();
        Self { raw: connection, session: Session::of_single() }
    }

    /// sqlx's own connection, on which nothing is counted.
    pub fn unmetered(&mut self) -> &mut DB::Connection {
        self.raw
    }

    pub(super) fn handle(&mut self) -> Handle<'_, DB> {
        Handle { raw: self.raw, session: &mut self.session }
    }
}

impl<DB: Database> fmt::Debug for BorrowedConnection<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BorrowedConnection").finish_non_exhaustive()
    }
}
