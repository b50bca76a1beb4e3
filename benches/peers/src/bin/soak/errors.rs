//! Which errors a handler may see, with servers that are restarted and locks that others hold.

use std::error::Error;

use request_budget::Cut;

use crate::ledger::Store;

/// Whether a handler of this path may see this error; any other is a failure of the soak.
pub fn is_to_be_expected(path: &str, error: &(dyn Error + 'static)) -> bool {
    if Cut::find(error).is_some() {
        return true;
    }
    // The path `/other/all` is for all of them.
    let may_be = |store: Store| path.contains(store.name()) || path.ends_with("/all");
    match error.downcast_ref() {
        // The pool is smaller than the number of clients.
        Some(sqlx::Error::PoolTimedOut) => true,
        // A savepoint that was dropped midway.
        Some(sqlx::Error::Protocol(reason)) if reason.contains("savepoint") => true,
        // A statement whose preparation was dropped midway, after which the connection was used on.
        Some(sqlx::Error::Protocol(reason)) if reason.ends_with("use another connection") => {
            may_be(Store::Mariadb)
        }
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => may_be(Store::Postgres),
        Some(sqlx::Error::Database(error)) => {
            let code = error.code().unwrap_or_default();
            // PostgreSQL is shutting down or starting; SQLite has waited long enough for a lock.
            (may_be(Store::Postgres) && code.starts_with("57P"))
                || (may_be(Store::Sqlite) && code.parse().is_ok_and(|code: u32| code & 0xff == 5))
        }
        _ => false,
    }
}
