//! What this crate knows of a connection, beyond what its driver knows.

use sqlx::{Database, Executor};

use super::changes::Changes;
use super::control::{Sent, send};
use super::execution::uncounted;
use super::kind::Kind;
use super::methods::Methods;
use crate::meter::table::DatabaseId;

/// The state of a connection, and the functions to use it.
pub(super) struct Session<DB: Database> {
    pub(super) methods: &'static Methods<DB>,
    pub(super) database: DatabaseId,
    pub(super) was_interrupted: bool,
    pub(super) kind: Kind,
    pub(super) changes: Changes,
    pub(super) transactions: Transactions,
}

/// The transactions of a connection.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// How many metered ones are open: a transaction and the savepoints in it.
    pub(super) open: u32,
    pub(super) state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Driver and server agree on what is open.
    #[default]
    InStep,
    /// A `BEGIN` was dropped midway: a transaction may be open, and has to be rolled back.
    Stray,
    /// The open transaction has been rolled back, with all of its savepoints.
    Lost,
    /// A savepoint was dropped midway, and it is unknown whether it exists: the connection has to be closed.
    Broken,
}

impl<DB: Database> Session<DB> {
    pub(super) fn new(methods: &'static Methods<DB>, kind: Kind, database: DatabaseId) -> Self {
        Self {
            methods,
            database,
            was_interrupted: false,
            kind,
            changes: Changes::default(),
            transactions: Transactions::default(),
        }
    }

    /// That of a single connection, whose options are not known.
    pub(super) fn of_single() -> Self
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        Self::new(Methods::of_driver(), Kind::of_single::<DB>(), DatabaseId::UNKNOWN)
    }

    /// Whether [`settle`](Handle::settle) has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        self.transactions.state == State::InStep
    }
}

/// A borrowed connection of the driver, with its state.
pub(super) struct Handle<'c, DB: Database> {
    pub(super) raw: &'c mut DB::Connection,
    pub(super) session: &'c mut Session<DB>,
}

impl<'c, DB: Database> Handle<'c, DB> {
    /// Makes sure that the next statement is executed in the transaction that it is meant for, or in none.
    pub(super) async fn settle(&mut self) -> sqlx::Result<()> {
        match self.session.transactions.state {
            State::InStep => Ok(()),
            State::Stray => self.roll_back_stray().await,
            State::Lost | State::Broken => Err(lost()),
        }
    }

    #[cold]
    async fn roll_back_stray(&mut self) -> sqlx::Result<()> {
        let Session { was_interrupted, transactions, .. } = &mut *self.session;
        let sent = uncounted(send::<DB>(self.raw, "ROLLBACK"), was_interrupted).await;
        transactions.state = match &sent {
            // Refused where there was none.
            Sent::Outside | Sent::Refused(_) => State::InStep,
            Sent::InTransaction | Sent::Failed(_) => State::Broken,
        };
        match sent {
            Sent::Outside | Sent::Refused(_) => Ok(()),
            Sent::InTransaction => Err(lost()),
            Sent::Failed(error) => Err(error),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.session.is_settled()
    }

    /// Notes what a statement that is about to be executed may change in the session.
    #[inline]
    pub(super) fn note(&mut self, text: &str, may_be_batch: bool) {
        self.session.changes.note(self.session.kind, text, may_be_batch);
    }

    /// What the driver's connection does as an executor.
    pub(super) fn methods(&self) -> &'static Methods<DB> {
        self.session.methods
    }

    /// On what its statements are executed.
    pub(super) fn database(&self) -> DatabaseId {
        self.session.database
    }

    /// The driver's connection, and where to note that a statement on it was interrupted.
    pub(super) fn into_parts(self) -> (&'c mut DB::Connection, &'c mut bool) {
        (self.raw, &mut self.session.was_interrupted)
    }
}

/// The error for the owner of a transaction that does not exist any more.
#[cold]
pub(super) fn lost() -> sqlx::Error {
    let reason = "the transaction was rolled back, because a savepoint in it was dropped midway";
    sqlx::Error::Protocol(reason.to_owned())
}
