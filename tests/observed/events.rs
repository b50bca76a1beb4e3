//! `db::SqlxEvents` on plain pools of SQLite, whose events are emitted on other threads.

use std::sync::LazyLock;
use std::time::Duration;

use futures_util::future::join_all;
use request_budget::db::{SqlxEvents, executed};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Limit, Usage};
use sqlx::SqlitePool;
use sqlx::sqlite::SqlitePoolOptions;
use tracing_subscriber::layer::SubscriberExt;

/// Events of SQLite's threads reach the global subscriber only.
static INSTALLED: LazyLock<()> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::registry().with(SqlxEvents::new());
    tracing::subscriber::set_global_default(subscriber).unwrap();
});

pub(crate) async fn plain_pool() -> SqlitePool {
    LazyLock::force(&INSTALLED);
    SqlitePoolOptions::new().max_connections(4).connect("sqlite::memory:").await.unwrap()
}

/// Waits until the thread of each connection has emitted all of its events.
pub(crate) async fn settle(pool: &SqlitePool) {
    use sqlx::Connection;
    // Two that each hold some of the connections would wait for each other.
    static ALL_CONNECTIONS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALL_CONNECTIONS.lock().await;
    let all = join_all((0..4).map(|_| pool.acquire())).await;
    for connection in all {
        connection.unwrap().ping().await.unwrap();
    }
}

#[tokio::test]
async fn statements_of_a_plain_pool_are_counted() {
    let pool = plain_pool().await;
    let work = async {
        for id in 1..=3 {
            sqlx::query("SELECT $1 UNION SELECT 7").bind(id).fetch_all(&pool).await.unwrap();
        }
        sqlx::query("CREATE TABLE posts (id INTEGER)").execute(&pool).await.unwrap();
        sqlx::query("nonsense").execute(&pool).await.unwrap_err();
        settle(&pool).await;
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.repeated_queries, usage.rows, usage.writes), (3, 6, 1), "{usage:?}");
    assert_eq!((usage.queries, usage.unmetered), (usage.observed, 0), "{usage:?}");
    assert!((4..=5).contains(&usage.queries), "{usage:?}");
    assert!(usage.query_time > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_on_metered_and_plain_pools_are_told_apart() {
    let plain = plain_pool().await;
    let metered = Pool::from(plain.clone());
    let request = |n: u64| {
        let (plain, metered) = (plain.clone(), metered.clone());
        let work = async move {
            for _ in 0..n % 7 {
                sqlx::query("SELECT 1").fetch_one(&plain).await.unwrap();
                executed("SELECT 1", Duration::ZERO, 1);
            }
            for _ in 0..n % 5 {
                sqlx::query("SELECT 1").fetch_one(&metered).await.unwrap();
            }
            settle(&plain).await;
            let usage = Usage::current().unwrap();
            assert_eq!((usage.queries, usage.observed), (n % 7 + n % 5, n % 7), "{n}");
            // An event does not name the database, so what it reports repeats only what others
            // report.
            assert_eq!((usage.rows, usage.repeated_queries), (usage.queries, (n % 7).max(n % 5)));
        };
        tokio::spawn(work.budgeted("request", Budget::new()))
    };
    for request in join_all((0..50).map(request)).await {
        request.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_hard_limit_that_an_event_crosses_cuts_work_that_waits() {
    let pool = plain_pool().await;
    let work = async {
        sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
        sqlx::query("SELECT 2").fetch_one(&pool).await.unwrap();
        std::future::pending::<()>().await;
    };
    let cut = work.budgeted("work", Budget::new().queries(Limit::hard(1))).await.unwrap_err();
    assert!(cut.to_string().contains("2 queries, limit 1"), "{cut}");
}

#[tokio::test]
async fn a_task_that_is_carried_counts_for_the_work_and_its_outer_work() {
    let pool = plain_pool().await;
    let inner = async {
        let statement = {
            let pool = pool.clone();
            async move { sqlx::query("SELECT 1").fetch_one(&pool).await.map(drop) }
        };
        tokio::spawn(statement.in_current_budget()).await.unwrap().unwrap();
        settle(&pool).await;
        Usage::current().unwrap().queries
    };
    let outer = async {
        let inner = inner.budgeted("inner", Budget::new()).await.unwrap();
        (inner, Usage::current().unwrap().queries)
    };
    assert_eq!(outer.budgeted("outer", Budget::new()).await, Ok((1, 1)));
}

#[tokio::test]
async fn statements_of_the_any_driver_are_counted() {
    LazyLock::force(&INSTALLED);
    sqlx::any::install_default_drivers();
    let options = sqlx::any::AnyPoolOptions::new().max_connections(1);
    let plain = options.connect("sqlite::memory:").await.unwrap();
    let metered = Pool::from(plain.clone());
    let work = async {
        let rows = sqlx::query("SELECT 1 UNION SELECT 2").fetch_all(&plain).await.unwrap();
        assert_eq!(rows.len(), 2);
        sqlx::query("SELECT 1").execute(&metered).await.unwrap();
        sqlx::query("SELECT 1").execute(&plain).await.unwrap();
        sqlx::Connection::ping(&mut *plain.acquire().await.unwrap()).await.unwrap();
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.queries, usage.observed, usage.unmetered), (3, 2, 0), "{usage:?}");
}
