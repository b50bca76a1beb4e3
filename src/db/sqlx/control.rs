//! Statements of this crate's own, sent to a connection of any database.

use std::pin::pin;
use std::task::{Context, Waker};

use sqlx::error::DatabaseError;
use sqlx::{Connection as _, Database, SqlStr};
use sqlx_core::transaction::TransactionManager;

use super::methods::Methods;
use super::request::Request;
use crate::db::driver::Driver;

/// What has become of a text that was sent.
pub(super) enum Sent {
    /// It was executed, and no transaction is open now, or one that has failed.
    Outside,
    /// It was executed, and a transaction is open, which the driver knows of now.
    InTransaction,
    Refused(Box<dyn DatabaseError>),
    /// The connection is of no use any more, or the driver believes itself in a transaction.
    Failed(sqlx::Error),
}

/// Sends a text that returns nothing of interest, where the driver believes itself outside of a
/// transaction.
///
/// As the statement that begins a transaction, for that is what all drivers can do whose executor
/// is not known here: they execute it as it is, and then look whether there is a transaction.
pub(super) async fn send<DB: Database>(raw: &mut DB::Connection, text: &'static str) -> Sent {
    send_text::<DB>(raw, SqlStr::from_static(text)).await
}

pub(super) async fn send_text<DB: Database>(raw: &mut DB::Connection, text: SqlStr) -> Sent {
    match Driver::new(DB::TransactionManager::begin(raw, Some(text))).await {
        Ok(()) => Sent::InTransaction,
        Err(sqlx::Error::BeginFailed) => Sent::Outside,
        Err(sqlx::Error::Database(error)) => Sent::Refused(error),
        Err(error) => Sent::Failed(error),
    }
}

/// Whether MySQL's driver takes each answer of the server for that to what it belongs to.
///
/// It does not know of answers that are still to come to a `prepare` or a ping that was dropped
/// midway.
pub(super) async fn is_in_step<DB: Database>(
    raw: &mut DB::Connection,
    methods: &Methods<DB>,
) -> bool {
    // A `prepare` that was dropped midway leaves descriptions of columns. The driver panics where
    // it takes those for the beginning of rows, but only fails where it takes them for the answer
    // to a ping. The first ping reads what else there is: the error of a statement, or that the
    // statement is prepared.
    if !matches!(raw.ping().await, Ok(()) | Err(sqlx::Error::Database(_)))
        || raw.ping().await.is_err()
    {
        return false;
    }
    // The answers to earlier pings and statements look alike. This one names what was asked for, and so
    // do the errors of all servers that speak this protocol, of which not all can `SIGNAL`.
    let asked = sqlx::raw_sql("SELECT request_budget_is_in_step");
    let answer = Driver::for_itself((methods.execute)(raw, Request::new(asked))).await;
    let is_answer =
        |error: &dyn DatabaseError| error.message().contains("request_budget_is_in_step");
    matches!(answer, Err(sqlx::Error::Database(error)) if is_answer(&*error))
}

/// Has PostgreSQL's driver send this before whatever is sent next, where it believes itself outside
/// of a transaction.
///
/// It writes the text down when it is polled for the first time, and from then on knows that there
/// will be an answer. Other drivers first wait for the answers to what was sent before.
pub(super) fn queue<DB: Database>(raw: &mut DB::Connection, text: &'static str) {
    let sending = pin!(send::<DB>(raw, text));
    // Dropped when it was polled once: the next operation reads the answer.
    drop(sending.poll(&mut Context::from_waker(Waker::noop())));
}

/// Rolls back all that the driver knows to be open, before whatever is sent next.
pub(super) fn queue_rollbacks<DB: Database>(raw: &mut DB::Connection) {
    for _ in 0..DB::TransactionManager::get_transaction_depth(raw) {
        DB::TransactionManager::start_rollback(raw);
    }
}
