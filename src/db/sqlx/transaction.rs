//! Instrumented transactions.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{Database, SqlStr};
use sqlx_core::transaction::TransactionManager;

use super::connection::{Connection, PoolConnection};
use super::control::{queue, queue_rollbacks};
use super::execution::Execution;
use super::refuse;
use super::session::State;
use crate::db::TransactionWait;
use crate::db::driver::Driver;

/// A transaction, or a savepoint inside one; rolled back when dropped before its end.
///
/// Statements run on `&mut *tx`; [`tx.begin()`](Connection::begin) makes a savepoint.
pub struct Transaction<'c, DB: Database> {
    connection: Held<'c, DB>,
    stage: Stage,
}

/// How far a transaction is, and so what is to be done when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its `BEGIN` is in progress; this many transactions and savepoints were open before.
    Beginning(usize),
    Open,
    /// The driver works on its `COMMIT`.
    Committing,
    Over,
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

    async fn begin_on(
        mut connection: Held<'c, DB>,
        statement: Option<SqlStr>,
    ) -> sqlx::Result<Self> {
        let held = connection.get_mut();
        if statement.is_some() && held.transactions().0.open > 0 {
            return Err(sqlx::Error::InvalidSavePointStatement);
        }
        held.settle().await?;
        if let Some(statement) = &statement {
            // It may set something before it begins: `SET SESSION .. ; BEGIN`.
            held.handle().note(statement.as_str(), true);
        }
        let wait = match TransactionWait::begin() {
            Ok(wait) => wait,
            Err(cut) => return Err(refuse(cut).await),
        };
        let depth = DB::TransactionManager::get_transaction_depth(held.parts().0);
        let (transactions, _) = held.transactions();
        transactions.open = transactions.open.saturating_add(1);
        let mut transaction = Self { connection, stage: Stage::Beginning(depth) };
        let (raw, interrupted) = transaction.parts();
        let mut execution = Execution::new(wait, interrupted);
        let begun = Driver::new(DB::TransactionManager::begin(raw, statement)).await;
        execution.mark_over();
        drop(execution);
        match begun {
            Ok(()) => {
                transaction.stage = Stage::Open;
                Ok(transaction)
            }
            Err(error) => {
                transaction.stage = Stage::Over;
                transaction.look_whether_lost(depth);
                Err(error)
            }
        }
    }

    /// Makes the changes last.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver. Where a hard limit has refused something to the unit of
    /// work it is an [`sqlx::Error::Configuration`], and the changes are undone: some of them are
    /// missing. Where a savepoint in it was dropped midway, so that they are undone already, it is
    /// an [`sqlx::Error::Protocol`].
    pub async fn commit(mut self) -> sqlx::Result<()> {
        if let Err(cut) = TransactionWait::may_commit() {
            return Err(refuse(cut).await);
        }
        self.connection.get_mut().settle().await?;
        self.stage = Stage::Committing;
        let (raw, interrupted) = self.parts();
        let mut execution = Execution::new(TransactionWait::end(), interrupted);
        let committed = Driver::new(DB::TransactionManager::commit(raw)).await;
        execution.mark_over();
        drop(execution);
        self.stage = if committed.is_ok() { Stage::Over } else { Stage::Open };
        committed
    }

    /// Undoes the changes, and waits until that is done.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        // What was lost has been rolled back, or is when its connection is closed.
        if self.connection.get_mut().settle().await.is_err() {
            return Ok(());
        }
        let (raw, interrupted) = self.parts();
        let mut execution = Execution::new(TransactionWait::end(), interrupted);
        let rolled_back = Driver::new(DB::TransactionManager::rollback(raw)).await;
        execution.mark_over();
        drop(execution);
        if rolled_back.is_ok() {
            self.stage = Stage::Over;
        }
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

impl<DB: Database> Transaction<'_, DB> {
    /// The metered connection, as an executor.
    #[expect(clippy::should_implement_trait, reason = "the trait's hands out sqlx's connection")]
    pub fn as_mut(&mut self) -> &mut Connection<DB> {
        self.connection.get_mut()
    }

    /// Notes that all is lost if the driver has rolled back more than the savepoint that was not
    /// made.
    ///
    /// PostgreSQL's does: what it rolls back when its `begin` is dropped, or fails, is the
    /// innermost transaction that is open, and that is the one around.
    fn look_whether_lost(&mut self, depth: usize) {
        let (raw, _) = self.parts();
        if DB::TransactionManager::get_transaction_depth(raw) < depth {
            queue_rollbacks::<DB>(raw);
            // Whatever gets past us until the transaction is dropped does not last either.
            queue::<DB>(raw, "BEGIN");
            self.transactions().0.state = State::Lost;
        }
    }

    /// Ends the outermost transaction, which is not there any more.
    fn end_lost(&mut self) {
        let (raw, _) = self.parts();
        if DB::TransactionManager::get_transaction_depth(raw) > 0 {
            queue_rollbacks::<DB>(raw);
        } else {
            queue::<DB>(raw, "ROLLBACK");
        }
        self.transactions().0.state = State::Known;
    }
}

impl<DB: Database> Drop for Transaction<'_, DB> {
    fn drop(&mut self) {
        let (transactions, kind) = self.transactions();
        transactions.open = transactions.open.saturating_sub(1);
        let (is_outermost, state) = (transactions.open == 0, transactions.state);
        match (state, self.stage) {
            (State::Lost, _) if is_outermost => self.end_lost(),
            (State::Lost | State::Broken | State::OutOfStep, _) | (_, Stage::Over) => {}
            (_, Stage::Beginning(0)) => self.has_strayed(),
            // MySQL keeps the unused savepoint, and SQLite's thread rolls it back by itself.
            (_, Stage::Beginning(depth)) => self.look_whether_lost(depth),
            // It may be released, so that a rollback to it would fail; SQLite's thread knows.
            (_, Stage::Committing) if !is_outermost && !kind.is_sqlite() => {
                self.transactions().0.state = State::Broken;
            }
            (_, Stage::Open | Stage::Committing) => {
                DB::TransactionManager::start_rollback(self.parts().0);
            }
        }
    }
}

impl<DB: Database> Held<'_, DB> {
    fn get_mut(&mut self) -> &mut Connection<DB> {
        match self {
            Self::Pooled(connection) => connection,
            Self::Borrowed(connection) => connection,
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
        self.connection.get_mut()
    }
}

impl<DB: Database> fmt::Debug for Transaction<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("stage", &self.stage).finish_non_exhaustive()
    }
}
