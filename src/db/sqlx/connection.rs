//! Instrumented connections.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::thread;

use futures_core::future::BoxFuture;
use sqlx::{Connection as _, Database, Executor, SqlSafeStr};

use super::clean;
use super::control::queue;
use super::execution::{Interrupted, uncounted};
use super::kind::Kind;
use super::methods::Methods;
use super::session::{Handle, Session, State, Transactions};
use super::transaction::Transaction;
use crate::meter::recording::for_library;
use crate::meter::table::DatabaseId;
use crate::{memory, scope};

/// A connection whose statements are counted, of a pool or by itself.
///
/// `&mut Connection` is the executor behind `&mut *conn` of a [`PoolConnection`] and `&mut *tx` of
/// a [`Transaction`]. See the [module docs](super).
pub struct Connection<DB: Database> {
    /// `None` only while it is taken apart.
    raw: Option<Raw<DB>>,
    session: Session<DB>,
    is_closed_on_drop: bool,
}

enum Raw<DB: Database> {
    Pooled(sqlx::pool::PoolConnection<DB>),
    Single(Box<DB::Connection>),
}

impl<DB: Database> Connection<DB> {
    /// Counts the statements of a connection that belongs to no pool.
    pub fn new(raw: DB::Connection) -> Self
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        crate::report::unmeasured::statements_are_metered();
        Self {
            raw: Some(Raw::Single(Box::new(raw))),
            session: Session::of_single(),
            is_closed_on_drop: false,
        }
    }

    /// sqlx's own connection.
    ///
    /// **What passes through it is not counted**, and no limit holds for it. For what needs sqlx's
    /// own type: migrations, `COPY`, hooks of a driver.
    pub fn unmetered(&mut self) -> &mut DB::Connection {
        // What is done to it is not seen.
        self.session.changes.is_lasting = true;
        self.parts().0
    }

    /// The connection itself, as an executor.
    ///
    /// Code written for sqlx passes `conn.as_mut()` to queries; so it stays metered.
    #[expect(clippy::should_implement_trait, reason = "the trait's hands out sqlx's connection")]
    pub fn as_mut(&mut self) -> &mut Self {
        self
    }

    /// The driver's connection, and what is known of it.
    pub(super) fn handle(&mut self) -> Handle<'_, DB> {
        let raw = match self.raw.as_mut().expect("whole until it is closed") {
            Raw::Pooled(raw) => &mut **raw,
            Raw::Single(raw) => &mut **raw,
        };
        Handle { raw, session: &mut self.session }
    }

    /// Makes sure that a statement executed now is in the transaction that it is meant for, or in
    /// none.
    pub(super) async fn settle(&mut self) -> sqlx::Result<()> {
        self.handle().settle().await
    }

    /// Notes that a transaction, which is the outermost, has been dropped midway in its beginning.
    pub(super) fn has_strayed(&mut self) {
        match self.session.kind {
            // SQLite's thread rolls a transaction back by itself if its `begin` was dropped.
            Kind::SqliteFile | Kind::SqliteMemory => {}
            Kind::Postgres => queue::<DB>(self.parts().0, "ROLLBACK"),
            Kind::MySql | Kind::Other => self.session.transactions.state = State::Stray,
        }
    }

    /// What is known of the transactions, and which database it is.
    pub(super) fn transactions(&mut self) -> (&mut Transactions, Kind) {
        (&mut self.session.transactions, self.session.kind)
    }

    /// The driver's connection, to be looked at.
    pub(super) fn raw(&self) -> &DB::Connection {
        match self.raw.as_ref().expect("whole until it is closed") {
            Raw::Pooled(raw) => raw,
            Raw::Single(raw) => raw,
        }
    }

    /// The driver's connection, and where to note that a statement on it was interrupted.
    pub(super) fn parts(&mut self) -> (&mut DB::Connection, &mut Interrupted) {
        self.handle().into_parts()
    }

    /// Begins a transaction, or a savepoint inside the one that is open.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver, or an [`sqlx::Error::Configuration`] past a hard limit.
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

    /// Runs this in a transaction, which is committed if it returns `Ok`, and rolled back
    /// otherwise.
    ///
    /// # Errors
    ///
    /// Returns the error of the closure, or that of [`begin`](Self::begin), of
    /// [`commit`](Transaction::commit) or of [`rollback`](Transaction::rollback).
    pub async fn transaction<'a, F, T, E>(&'a mut self, callback: F) -> Result<T, E>
    where
        for<'c> F: FnOnce(&'c mut Transaction<'_, DB>) -> BoxFuture<'c, Result<T, E>>,
        F: 'a,
        E: From<sqlx::Error>,
    {
        let mut transaction = self.begin().await?;
        match callback(&mut transaction).await {
            Ok(done) => transaction.commit().await.map(|()| done).map_err(E::from),
            Err(error) => {
                transaction.rollback().await?;
                Err(error)
            }
        }
    }

    /// Checks whether the server answers. Not counted.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn ping(&mut self) -> sqlx::Result<()> {
        let (raw, interrupted) = self.parts();
        uncounted(raw.ping(), interrupted).await
    }

    /// Closes the connection after notifying the server.
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
        let Some(Raw::Pooled(raw)) = self.raw.take() else { return };
        let is_ended_early = || {
            // A panic ends work midway as well, and unwinds inside its scope.
            scope::current().is_some_and(|meter| meter.is_abandoned() || thread::panicking())
        };
        let session = &mut self.session;
        if matches!(session.transactions.state, State::Broken | State::OutOfStep) {
            clean::close(raw);
        } else if session.interrupted.by_end || !session.is_settled() || is_ended_early() {
            if self.is_closed_on_drop {
                return clean::close(raw);
            }
            let changes = mem::take(&mut session.changes);
            clean::give_back(raw, session.kind, session.methods, changes);
        } else {
            // sqlx spawns a task for it, which ends elsewhere: that is nobody's memory, and no task
            // that the work spawned.
            memory::aside(|| for_library(|| drop(raw)));
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
/// If its unit of work is cut, or dropped, or panics, it is cleaned before, or closed: see the
/// [module docs](super#cancellation).
pub struct PoolConnection<DB: Database>(Connection<DB>);

impl<DB: Database> PoolConnection<DB> {
    pub(super) fn new(
        raw: sqlx::pool::PoolConnection<DB>,
        methods: &'static Methods<DB>,
        kind: Kind,
        database: DatabaseId,
    ) -> Self {
        let session = Session::new(methods, kind, database);
        Self(Connection { raw: Some(Raw::Pooled(raw)), session, is_closed_on_drop: false })
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
            self.0.is_closed_on_drop = true;
        }
    }

    /// The metered connection, as an executor.
    #[expect(clippy::should_implement_trait, reason = "the trait's hands out sqlx's connection")]
    pub fn as_mut(&mut self) -> &mut Connection<DB> {
        &mut self.0
    }

    /// Takes the connection out of the pool for good.
    #[must_use]
    pub fn detach(mut self) -> Connection<DB> {
        crate::report::unmeasured::statements_are_metered();
        let raw = self.0.raw.take().map(|raw| match raw {
            Raw::Pooled(raw) => Raw::Single(Box::new(raw.detach())),
            single @ Raw::Single(_) => single,
        });
        let Session { methods, kind, database, .. } = self.0.session;
        let mut session = Session::new(methods, kind, database);
        session.transactions = mem::take(&mut self.0.session.transactions);
        Connection { raw, session, is_closed_on_drop: false }
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
