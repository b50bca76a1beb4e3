//! What this crate knows of a connection, beyond what its driver knows.

use sqlx::{Database, Executor};

use super::changes::Changes;
use super::control::{Sent, is_in_step, send};
use super::execution::{Interrupted, uncounted};
use super::kind::Kind;
use super::methods::Methods;
use crate::meter::table::DatabaseId;

/// The state of a connection, and the functions to use it.
pub(super) struct Session<DB: Database> {
    pub(super) methods: &'static Methods<DB>,
    pub(super) database: DatabaseId,
    pub(super) interrupted: Interrupted,
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
    Known,
    /// A `BEGIN` was dropped midway: a transaction may be open, and has to be rolled back.
    Stray,
    /// The open transaction has been rolled back, with all of its savepoints.
    Lost,
    /// A savepoint was dropped midway, and it is unknown whether it exists: the connection has to
    /// be closed.
    Broken,
    /// The driver cannot tell any more which answer belongs to what: the connection has to be
    /// closed.
    OutOfStep,
}

impl<DB: Database> Session<DB> {
    pub(super) fn new(methods: &'static Methods<DB>, kind: Kind, database: DatabaseId) -> Self {
        Self {
            methods,
            database,
            interrupted: Interrupted::default(),
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
        self.transactions.state == State::Known && !self.may_be_out_of_step()
    }

    /// Whether the driver may be about to take the answer to something else for that to what is
    /// sent next.
    fn may_be_out_of_step(&self) -> bool {
        self.interrupted.in_answer && self.kind == Kind::MySql
    }
}

/// A borrowed connection of the driver, with its state.
pub(super) struct Handle<'c, DB: Database> {
    pub(super) raw: &'c mut DB::Connection,
    pub(super) session: &'c mut Session<DB>,
}

impl<'c, DB: Database> Handle<'c, DB> {
    /// Makes sure that the next statement is executed in the transaction that it is meant for, or
    /// in none.
    pub(super) async fn settle(&mut self) -> sqlx::Result<()> {
        if self.session.may_be_out_of_step() {
            self.check_step().await;
        }
        match self.session.transactions.state {
            State::Known => Ok(()),
            State::Stray => self.roll_back_stray().await,
            State::Lost | State::Broken => Err(lost()),
            State::OutOfStep => Err(out_of_step()),
        }
    }

    /// Has the driver read what is left of the answer to what was dropped midway, if it can.
    #[cold]
    async fn check_step(&mut self) {
        let Session { interrupted, methods, transactions, .. } = &mut *self.session;
        if !uncounted(is_in_step::<DB>(self.raw, methods), interrupted).await {
            transactions.state = State::OutOfStep;
        }
        // Nothing is left to be found out, either way.
        interrupted.in_answer = false;
    }

    #[cold]
    async fn roll_back_stray(&mut self) -> sqlx::Result<()> {
        let Session { interrupted, transactions, .. } = &mut *self.session;
        let sent = uncounted(send::<DB>(self.raw, "ROLLBACK"), interrupted).await;
        transactions.state = match &sent {
            // Refused where there was none.
            Sent::Outside | Sent::Refused(_) => State::Known,
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
    pub(super) fn into_parts(self) -> (&'c mut DB::Connection, &'c mut Interrupted) {
        (self.raw, &mut self.session.interrupted)
    }
}

/// The error for the owner of a transaction that does not exist any more.
#[cold]
fn lost() -> sqlx::Error {
    let reason = "the transaction was rolled back, because a savepoint in it was dropped midway";
    sqlx::Error::Protocol(reason.to_owned())
}

/// The error for the owner of a connection whose driver has lost track of the answers.
#[cold]
fn out_of_step() -> sqlx::Error {
    let reason = "a statement was dropped midway, and the rest of its answer cannot be told from \
        the next: use another connection";
    sqlx::Error::Protocol(reason.to_owned())
}
