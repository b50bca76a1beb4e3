//! Connections of work that was ended early, on their way back to the pool: clean, or closed.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Database, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::changes::Changes;
use super::control::{Sent, is_in_step, send, send_text};
use super::kind::Kind;
use super::methods::Methods;
use crate::memory;

/// How long the next user of a pool has to wait at most, until it may open a connection of its own.
const PATIENCE: Duration = Duration::from_millis(25);

/// Cleans a connection in a task of its own and gives it back to its pool; closes what cannot be
/// cleaned, or not soon.
///
/// The task belongs to no unit of work, and what it takes is charged to none.
pub(super) fn give_back<DB: Database>(
    raw: sqlx::pool::PoolConnection<DB>,
    kind: Kind,
    methods: &'static Methods<DB>,
    changes: Changes,
) {
    memory::aside(|| {
        let returning = Returning(Some(raw));
        let is_cleanable = match kind {
            Kind::Postgres | Kind::MySql => !changes.is_lasting,
            Kind::SqliteFile => {
                !(changes.is_lasting || changes.has_temporary || !changes.attached.is_empty())
            }
            Kind::SqliteMemory => true,
            Kind::Other => false,
        };
        if is_cleanable && let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(returning.clean(kind, methods, changes)));
        } else if kind == Kind::SqliteMemory {
            returning.keep();
        }
    });
}

/// Closes a connection without waiting for anything, which makes room in its pool at once. The
/// server rolls back what was open.
pub(super) fn close<DB: Database>(raw: sqlx::pool::PoolConnection<DB>) {
    memory::aside(|| drop(raw.detach()));
}

/// A connection that is closed when this is dropped.
struct Returning<DB: Database>(Option<sqlx::pool::PoolConnection<DB>>);

impl<DB: Database> Returning<DB> {
    async fn clean(mut self, kind: Kind, methods: &Methods<DB>, changes: Changes) {
        let Some(raw) = self.0.as_deref_mut() else { return };
        let is_clean = match kind {
            Kind::Postgres => timeout(PATIENCE, clean_postgres::<DB>(raw)).await == Ok(true),
            Kind::MySql => timeout(PATIENCE, clean_mysql::<DB>(raw, methods)).await == Ok(true),
            Kind::SqliteFile => timeout(PATIENCE, clean_sqlite::<DB>(raw, &changes)).await.is_ok(),
            // To close it could lose the database, so its statement is waited for, however long it
            // takes.
            Kind::SqliteMemory => {
                wait_for_driver::<DB>(raw).await;
                clean_sqlite::<DB>(raw, &changes).await;
                true
            }
            Kind::Other => false,
        };
        if is_clean && let Some(mut raw) = self.0.take() {
            raw.return_to_pool().await;
        }
    }

    /// Gives it back as it is.
    fn keep(mut self) {
        drop(self.0.take());
    }
}

impl<DB: Database> Drop for Returning<DB> {
    fn drop(&mut self) {
        if let Some(raw) = self.0.take() {
            close(raw);
        }
    }
}

async fn clean_postgres<DB: Database>(raw: &mut DB::Connection) -> bool {
    const LEFT: &str = "SELECT pg_advisory_unlock_all(), 1 / (CASE WHEN \
        EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
        OR EXISTS (SELECT FROM pg_listening_channels()) \
        OR EXISTS (SELECT FROM pg_cursors WHERE is_holdable) \
        OR EXISTS (SELECT FROM pg_prepared_statements WHERE from_sql) \
        THEN 0 ELSE 1 END)";
    const FAILED_TRANSACTION: &str = "25P02";
    // The errors of what was in flight come up here, one each time.
    for _ in 0..4 {
        // Checked first, since the server warns of a `ROLLBACK` outside of a transaction.
        match send::<DB>(raw, "SELECT").await {
            Sent::Outside => return matches!(send::<DB>(raw, LEFT).await, Sent::Outside),
            Sent::InTransaction => {
                if DB::TransactionManager::rollback(raw).await.is_err() {
                    return false;
                }
            }
            Sent::Refused(error) if error.code().as_deref() == Some(FAILED_TRANSACTION) => {
                drop(send::<DB>(raw, "ROLLBACK").await);
            }
            Sent::Refused(_) => {}
            Sent::Failed(_) => return false,
        }
    }
    false
}

async fn clean_mysql<DB: Database>(raw: &mut DB::Connection, methods: &Methods<DB>) -> bool {
    const UNDO: &str = "ROLLBACK; UNLOCK TABLES; DO RELEASE_ALL_LOCKS()";
    is_in_step::<DB>(raw, methods).await && matches!(send::<DB>(raw, UNDO).await, Sent::Outside)
}

async fn clean_sqlite<DB: Database>(raw: &mut DB::Connection, changes: &Changes) {
    // What is refused was not open, or not there.
    while DB::TransactionManager::get_transaction_depth(raw) > 0
        && DB::TransactionManager::rollback(raw).await.is_ok()
    {}
    drop(send::<DB>(raw, "ROLLBACK").await);
    // What was done to sqlx's own connection was not seen.
    if changes.has_temporary || changes.is_lasting {
        drop_temporary::<DB>(raw).await;
    }
    for name in &changes.attached {
        let detach = format!("DETACH DATABASE \"{}\"", name.replace('"', "\"\""));
        drop(send_text::<DB>(raw, AssertSqlSafe(detach).into_sql_str()).await);
    }
}

/// Waits until the driver's thread has nothing left to do, or is gone.
///
/// It never answers a command that is queued when it panics, and refuses at once what is sent
/// afterwards. So what is not answered is sent again, after twice the time. A ping is used, since
/// only that has no effect once it is dropped.
async fn wait_for_driver<DB: Database>(raw: &mut DB::Connection) {
    let mut patience = PATIENCE;
    while timeout(patience, raw.ping()).await.is_err() {
        patience = patience.saturating_mul(2);
    }
}

/// Drops all temporary objects: SQLite does so when it is to store them elsewhere.
async fn drop_temporary<DB: Database>(raw: &mut DB::Connection) {
    // Rows cannot be read here, so the condition is turned into an error: the smallest integer has
    // no `abs`.
    let stored = [
        (
            "SELECT abs(-9223372036854775808 + temp_store - 1) FROM pragma_temp_store",
            "PRAGMA temp_store = 2; PRAGMA temp_store = 1",
        ),
        (
            "SELECT abs(-9223372036854775808 + temp_store - 2) FROM pragma_temp_store",
            "PRAGMA temp_store = 1; PRAGMA temp_store = 2",
        ),
    ];
    for (is_so, elsewhere_and_back) in stored {
        if matches!(send::<DB>(raw, is_so).await, Sent::Refused(_)) {
            drop(send::<DB>(raw, elsewhere_and_back).await);
            return;
        }
    }
    drop(send::<DB>(raw, "PRAGMA temp_store = 2; PRAGMA temp_store = 0").await);
}
