//! Instrumented connections.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{Connection as _, Database, SqlSafeStr};

use super::execution::uncounted;
use super::transaction::Transaction;

/// A connection whose statements are counted, of a pool or by itself.
///
/// `&mut Connection` is the executor behind `&mut *conn` of a [`PoolConnection`] and `&mut *tx` of a
/// [`Transaction`]. See the [module docs](super).
pub struct Connection<DB: Database> {
    /// `None` only while it is taken apart.
    raw: Option<Raw<DB>>,
    was_interrupted: bool,
}

enum Raw<DB: Database> {
    Pooled(sqlx::pool::PoolConnection<DB>),
    Single(Box<DB::Connection>),
}

impl<DB: Database> Connection<DB> {
    /// Counts the statements of a connection that belongs to no pool.
    pub fn new(raw: DB::Connection) -> Self {
        crate::report::unmeasured::statements_are_metered();
        Self::from_raw(Raw::Single(Box::new(raw)))
    }

    fn from_raw(raw: Raw<DB>) -> Self {
        Self { raw: Some(raw), was_interrupted: false }
    }

    /// sqlx's own connection.
    ///
    /// **What passes through it is not counted**, and no limit holds for it. For what needs sqlx's
    /// own type: migrations, `COPY`, hooks of a driver.
    pub fn unmetered(&mut self) -> &mut DB::Connection {
        self.parts().0
    }

    /// The driver's connection, and where to note that a statement on it was interrupted.
    pub(super) fn parts(&mut self) -> (&mut DB::Connection, &mut bool) {
        let raw = match self.raw.as_mut().expect("whole until it is closed") {
            Raw::Pooled(raw) => &mut **raw,
            Raw::Single(raw) => &mut **raw,
        };
        (raw, &mut self.was_interrupted)
    }

    /// Begins a transaction, or a savepoint inside the one that is open.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver, or an [`sqlx::Error::Io`] past a hard limit.
    pub async fn begin(&mut self) -> sqlx::Result<Transaction<'_, DB>> {
        Transaction::begin(self, None).await
    }

    /// Begins a transaction by this statement instead of `BEGIN`.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin); also if a transaction is open already.
    pub async fn begin_with(
        &mut self,
        statement: impl SqlSafeStr,
    ) -> sqlx::Result<Transaction<'_, DB>> {
        Transaction::begin(self, Some(statement.into_sql_str())).await
    }

    /// Asks the server whether it is there. Not counted.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn ping(&mut self) -> sqlx::Result<()> {
        let (raw, was_interrupted) = self.parts();
        uncounted(raw.ping(), was_interrupted).await
    }

    /// Closes the connection and tells the server so.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn close(mut self) -> sqlx::Result<()> {
        match self.raw.take() {
            Some(Raw::Pooled(raw)) => raw.close().await,
            Some(Raw::Single(raw)) => raw.close().await,
            None => Ok(()),
        }
    }
}

impl<DB: Database> Drop for Connection<DB> {
    fn drop(&mut self) {
        // On its way back to the pool it would wait for the statement that nobody waits for any more,
        // and hold its place for as long. Without it the pool has room at once; the server rolls back
        // what was open. SQLite's statement runs in this very process, and stops by itself when nobody
        // takes its rows; to close its connection can mean to lose the database, if that is in memory.
        if self.was_interrupted
            && matches!(DB::NAME, "PostgreSQL" | "MySQL")
            && let Some(Raw::Pooled(raw)) = self.raw.take()
        {
            drop(raw.detach());
        }
    }
}

impl<DB: Database> fmt::Debug for Connection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A [`Connection`] of a [`Pool`](super::Pool), to which it returns when dropped.
///
/// Unless its unit of work was cut, or dropped, in the middle of a statement: then it is closed.
pub struct PoolConnection<DB: Database>(Connection<DB>);

impl<DB: Database> PoolConnection<DB> {
    pub(super) fn new(raw: sqlx::pool::PoolConnection<DB>) -> Self {
        Self(Connection::from_raw(Raw::Pooled(raw)))
    }

    /// Closes the connection, which makes room in the pool for another.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn close(self) -> sqlx::Result<()> {
        self.0.close().await
    }

    /// Closes the connection when it is dropped, instead of giving it back.
    pub fn close_on_drop(&mut self) {
        if let Some(Raw::Pooled(raw)) = &mut self.0.raw {
            raw.close_on_drop();
        }
    }

    /// Takes the connection out of the pool for good.
    #[must_use]
    pub fn detach(mut self) -> Connection<DB> {
        match self.0.raw.take() {
            Some(Raw::Pooled(raw)) => Connection::new(raw.detach()),
            single => Connection { raw: single, was_interrupted: self.0.was_interrupted },
        }
    }
}

impl<DB: Database> Deref for PoolConnection<DB> {
    type Target = Connection<DB>;

    fn deref(&self) -> &Connection<DB> {
        &self.0
    }
}

impl<DB: Database> DerefMut for PoolConnection<DB> {
    fn deref_mut(&mut self) -> &mut Connection<DB> {
        &mut self.0
    }
}

impl<DB: Database> fmt::Debug for PoolConnection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConnection").finish_non_exhaustive()
    }
}
