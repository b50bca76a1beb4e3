//! Instrumented connections.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{Connection as _, Database, SqlSafeStr};

use super::transaction::Transaction;

/// A connection whose statements are counted, of a pool or by itself.
///
/// `&mut Connection` is the executor behind `&mut *conn` of a [`PoolConnection`] and `&mut *tx` of a
/// [`Transaction`]. See the [module docs](super).
pub struct Connection<DB: Database> {
    raw: Raw<DB>,
}

enum Raw<DB: Database> {
    Pooled(sqlx::pool::PoolConnection<DB>),
    Single(Box<DB::Connection>),
}

impl<DB: Database> Connection<DB> {
    /// Counts the statements of a connection that belongs to no pool.
    pub fn new(raw: DB::Connection) -> Self {
        crate::report::unmeasured::statements_are_metered();
        Self { raw: Raw::Single(Box::new(raw)) }
    }

    /// sqlx's own connection.
    ///
    /// **What passes through it is not counted**, and no limit holds for it. For what needs sqlx's
    /// own type: migrations, `COPY`, hooks of a driver.
    pub fn unmetered(&mut self) -> &mut DB::Connection {
        match &mut self.raw {
            Raw::Pooled(raw) => raw,
            Raw::Single(raw) => raw,
        }
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
        self.unmetered().ping().await
    }

    /// Closes the connection and tells the server so.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn close(self) -> sqlx::Result<()> {
        match self.raw {
            Raw::Pooled(raw) => raw.close().await,
            Raw::Single(raw) => raw.close().await,
        }
    }
}

impl<DB: Database> fmt::Debug for Connection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A [`Connection`] of a [`Pool`](super::Pool), to which it returns when dropped.
pub struct PoolConnection<DB: Database>(Connection<DB>);

impl<DB: Database> PoolConnection<DB> {
    pub(super) fn new(raw: sqlx::pool::PoolConnection<DB>) -> Self {
        Self(Connection { raw: Raw::Pooled(raw) })
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
        if let Raw::Pooled(raw) = &mut self.0.raw {
            raw.close_on_drop();
        }
    }

    /// Takes the connection out of the pool for good.
    #[must_use]
    pub fn detach(self) -> Connection<DB> {
        match self.0.raw {
            Raw::Pooled(raw) => Connection::new(raw.detach()),
            Raw::Single(_) => self.0,
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
