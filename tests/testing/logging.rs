//! Whatever a plain pool logs of its statements, at any level or not at all, it is no blind spot.

use std::str::FromStr;

use request_budget::testing::{Record, measure};
use request_budget::{Budget, sqlx::Pool};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Executor, SqlitePool};

use crate::failure;

async fn plain(level: &str) -> SqlitePool {
    let level = FromStr::from_str(level).unwrap();
    let options = SqliteConnectOptions::new().log_statements(level);
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

async fn metered() -> Pool<sqlx::Sqlite> {
    Pool::from(plain("debug").await)
}

/// Three statements on the plain pool, one of them by `fetch_all` and one in a transaction.
async fn three(plain: &SqlitePool) {
    plain.execute("SELECT 1").await.unwrap();
    sqlx::query("SELECT 1").fetch_all(plain).await.unwrap();
    let mut transaction = plain.begin().await.unwrap();
    transaction.execute("SELECT 1").await.unwrap();
    transaction.commit().await.unwrap();
}

fn assert_seen<T>(record: &Record<T>, level: &str) {
    assert_eq!(record.usage().unmetered, 3, "{level}");
    failure(|| record.assert_queries(0));
    failure(|| record.assert_no_repeated_statements());
    failure(|| record.assert_within(Budget::new().queries(2)));
    let said = failure(|| record.assert_no_unmetered());
    assert!(said.starts_with("3 statements passed through no metered connection\n"), "{said}");
    assert!(said.contains("       at tests/testing/logging.rs:"), "{said}");
}

#[tokio::test]
async fn a_plain_pool_is_seen_at_every_level_of_its_log() {
    let _metered = metered().await;
    for level in ["error", "warn", "info", "debug", "trace"] {
        let plain = plain(level).await;
        let record = measure(three(&plain)).await;
        assert_seen(&record, level);
        let [statement] = record.unmetered() else { panic!("one statement, {level}") };
        assert_eq!((&*statement.text, statement.executions), ("SELECT ?", 3));
    }
}

#[tokio::test]
async fn a_plain_pool_that_logs_nothing_is_seen_by_what_its_driver_asks() {
    let pool = metered().await;
    let plain = plain("off").await;
    let record = measure(three(&plain)).await;
    assert_seen(&record, "off");
    let [statement] = record.unmetered() else { panic!("one text for all") };
    let said = "(a statement that sqlx makes no event of: its logging is switched off, or it is not valid)";
    assert_eq!(statement.text, said);

    // Beside statements of a metered pool, and of a plain one that logs.
    let other = self::plain("debug").await;
    let record = measure(async {
        pool.execute("SELECT 2").await.unwrap();
        three(&plain).await;
        other.execute("SELECT 3").await.unwrap();
    });
    let record = record.await;
    assert_eq!((record.usage().queries, record.usage().unmetered), (1, 4));
    failure(|| record.assert_no_unmetered());
    failure(|| record.assert_queries(1));
    record.assert_queries(5);
}

#[tokio::test]
async fn a_metered_pool_that_logs_nothing_is_no_bypass() {
    let pool = Pool::from(plain("off").await);
    let record = measure(async {
        pool.execute("SELECT 1").await.unwrap();
        let mut transaction = pool.begin().await.unwrap();
        transaction.execute("SELECT 2").await.unwrap();
        transaction.commit().await.unwrap();
        pool.acquire().await.unwrap().execute("SELECT 3").await.unwrap();
    });
    let record = record.await;
    record.assert_queries(3);
    record.assert_no_unmetered();
}

#[tokio::test]
async fn what_is_no_statement_is_not_taken_for_one() {
    let pool = metered().await;
    let plain = plain("off").await;
    let record = measure(async {
        pool.execute("SELECT 1").await.unwrap();
        drop(plain.acquire().await.unwrap());
        plain.begin().await.unwrap().rollback().await.unwrap();
        // What asks for the span by itself, and holds it.
        let span = tracing::Span::current();
        span.in_scope(|| span.record("unknown", 1));
        span
    });
    let record = record.await;
    record.assert_queries(1);
    record.assert_no_unmetered();
}
