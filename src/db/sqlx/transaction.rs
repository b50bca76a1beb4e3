//! Instrumented transactions.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{Database, SqlStr};
use sqlx_core::transaction::TransactionManager;

use super::connection::{Connection, PoolConnection};
use super::execution::Execution;
use super::refuse;
use crate::db::TransactionWait;
use crate::db::driver::Driver;

/// A transaction, or a savepoint inside one; rolled back when dropped before its end.
///
/// Statements run on `&mut *tx`; [`tx.begin()`](Connection::begin) makes a savepoint.
pub struct Transaction<'c, DB: Database> {
    connection: Held<'c, DB>,
    is_open: bool,
}

enum Held<'c, DB: Database> {
    Pooled(PoolConnection<DB>),
    Borrowed(&'c mut Connection<DB>),
}

impl<'c, DB: Database> Transaction<'c, DB> {
    pub(super) async fn begin(
        connection: &'c mut Connection<DB>,
        statement: Option<SqlStr>,
    ) -> sqlx::Result<Self> {
        Self::begin_on(Held::Borrowed(connection), statement).await
    }

    async fn begin_on(connection: Held<'c, DB>, statement: Option<SqlStr>) -> sqlx::Result<Self> {
        let wait = TransactionWait::begin().map_err(refuse)?;
        // Open from here on: a `BEGIN` that fails or is cancelled may have reached the server.
        let mut transaction = Self { connection, is_open: true };
        let (raw, was_interrupted) = transaction.parts();
        let mut execution = Execution::new(wait, was_interrupted);
        let begun = Driver { future: DB::TransactionManager::begin(raw, statement) }.await;
        execution.is_over();
        drop(execution);
        begun.map(|()| transaction)
    }

    /// Makes the changes last.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver. Where a hard limit has refused something to the unit of work it
    /// is an [`sqlx::Error::Io`], and the changes are undone: some of them are missing.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        TransactionWait::may_commit().map_err(refuse)?;
        let (raw, was_interrupted) = self.parts();
        let mut execution = Execution::new(TransactionWait::end(), was_interrupted);
        let committed = Driver { future: DB::TransactionManager::commit(raw) }.await;
        execution.is_over();
        drop(execution);
        self.is_open = committed.is_err();
        committed
    }

    /// Undoes the changes, and waits until that is done.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        let (raw, was_interrupted) = self.parts();
        let mut execution = Execution::new(TransactionWait::end(), was_interrupted);
        let rolled_back = Driver { future: DB::TransactionManager::rollback(raw) }.await;
        execution.is_over();
        drop(execution);
        self.is_open = rolled_back.is_err();
        rolled_back
    }
}

impl<DB: Database> Transaction<'static, DB> {
    pub(super) async fn begin_pooled(
        connection: PoolConnection<DB>,
        statement: Option<SqlStr>,
    ) -> sqlx::Result<Self> {
        Self::begin_on(Held::Pooled(connection), statement).await
    }
}

impl<DB: Database> Drop for Transaction<'_, DB> {
    fn drop(&mut self) {
        if self.is_open {
            DB::TransactionManager::start_rollback(self.unmetered());
        }
    }
}

impl<DB: Database> Deref for Transaction<'_, DB> {
    type Target = Connection<DB>;

    fn deref(&self) -> &Connection<DB> {
        match &self.connection {
            Held::Pooled(connection) => connection,
            Held::Borrowed(connection) => connection,
        }
    }
}

impl<DB: Database> DerefMut for Transaction<'_, DB> {
    fn deref_mut(&mut self) -> &mut Connection<DB> {
        match &mut self.connection {
            Held::Pooled(connection) => connection,
            Held::Borrowed(connection) => connection,
        }
    }
}

impl<DB: Database> fmt::Debug for Transaction<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("is_open", &self.is_open).finish_non_exhaustive()
    }
}
