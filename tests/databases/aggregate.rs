//! A statement of SQLite that returns no row for long is not interrupted, and not in the way of
//! others.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Executor, Sqlite, SqlitePool};
use tokio::time::Instant;

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.without_server(&[
        ("aggregate_of_sqlite_in_memory_is_waited_for", || with_runtime(0, in_memory())),
        ("aggregate_of_sqlite_in_a_file_runs_on_apart", || with_runtime(0, in_a_file())),
    ]);
}

const MAKE: &str = "CREATE TABLE kept (a INTEGER); INSERT INTO kept VALUES (7); \
                    CREATE TABLE done (n INTEGER)";
/// Longer than a connection is waited for on any machine.
const AGGREGATE: &str = "INSERT INTO done SELECT count(*) FROM (WITH RECURSIVE n (i) AS \
                         (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) \
                         SELECT i FROM n)";

/// Work that hangs up when the thread of the driver has its aggregate.
async fn hang_up(pool: &Pool<Sqlite>) {
    let mut connection = pool.acquire().await.expect("acquires");
    let work = async {
        let mut aggregate = pin!(connection.execute(AGGREGATE));
        // It is handed over when it is polled for the first time.
        poll_fn(|cx| {
            assert!(aggregate.as_mut().poll(cx).is_pending(), "it takes a while");
            Poll::Ready(())
        })
        .await;
        aggregate.await.expect("nobody waits for it");
    };
    let mut work = pin!(work.budgeted("work", Budget::new()));
    poll_fn(|cx| {
        assert!(work.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

async fn in_memory() {
    let plain = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let plain = plain.connect("sqlite::memory:").await.expect("connects");
    plain.execute(MAKE).await.expect("makes tables");
    hang_up(&Pool::from(plain.clone())).await;
    let done: Vec<i64> =
        sqlx::query_scalar("SELECT n FROM done").fetch_all(&plain).await.expect("is there");
    assert_eq!(done, [2_000_000], "it was not interrupted, and the next one waited for it");
    let kept: Vec<i64> =
        sqlx::query_scalar("SELECT a FROM kept").fetch_all(&plain).await.expect("is there");
    assert_eq!(kept, [7], "the database survives");
}

async fn in_a_file() {
    let name = format!("request-budget-aggregate-{}.db", std::process::id());
    let file = std::env::temp_dir().join(name);
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let options = options.synchronous(SqliteSynchronous::Off);
    let admin = SqlitePool::connect_with(options.clone()).await.expect("connects");
    admin.execute(MAKE).await.expect("makes tables");
    let plain = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
    let plain = plain.expect("connects");
    let done = async || {
        sqlx::query_scalar::<_, i64>("SELECT n FROM done").fetch_all(&admin).await.expect("reads")
    };
    hang_up(&Pool::from(plain.clone())).await;
    let kept: Vec<i64> =
        sqlx::query_scalar("SELECT a FROM kept").fetch_all(&plain).await.expect("reads");
    assert_eq!(kept, [7], "the pool has a connection");
    let since = Instant::now();
    while done().await.is_empty() {
        assert!(since.elapsed() < Duration::from_secs(60), "it was interrupted");
    }
    assert_eq!(done().await, [2_000_000]);
    drop((admin, plain));
    std::fs::remove_file(&file).expect("it was made");
}
