//! Ways of wiring a test wrongly, one test each: an assertion fails, or standard error names it.

mod beside;
mod elsewhere;
mod plain;
mod records;
mod unawaited;
mod unmarked;

use std::process::Command;

use request_budget::sqlx::Pool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Executor, Sqlite, SqlitePool};

const ALONE: &str = "REQUEST_BUDGET_TEST_WIRING";

/// Runs one wiring in a process of its own, and demands that its standard error says each of these.
/// The harness captures nothing of it, since a warning of a test that passes would be lost.
async fn warns(test: &str, words: &[&str], wiring: impl Future<Output = ()>) {
    let said = said(test, wiring).await;
    for words in words {
        assert!(said.is_none_or_contains(words), "{words}: {said:?}");
    }
}

/// What one wiring writes to standard error; `None` in the process in which it runs.
async fn said(test: &str, wiring: impl Future<Output = ()>) -> Option<String> {
    if std::env::var(ALONE).is_ok_and(|alone| alone == test) {
        wiring.await;
        return None;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.arg("--exact").arg(format!("wirings::{test}")).env(ALONE, test);
    let output = alone.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(String::from_utf8(output.stderr).unwrap())
}

trait Said {
    fn is_none_or_contains(&self, words: &str) -> bool;
}

impl Said for Option<String> {
    fn is_none_or_contains(&self, words: &str) -> bool {
        self.as_ref().is_none_or(|said| said.contains(words))
    }
}

async fn plain_logging(level: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().log_statements(level.parse().unwrap());
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

async fn plain() -> SqlitePool {
    plain_logging("debug").await
}

async fn metered() -> Pool<Sqlite> {
    Pool::from(plain().await)
}

async fn query<'a>(pool: impl Executor<'a, Database = Sqlite>) {
    pool.execute("SELECT 1").await.unwrap();
}
