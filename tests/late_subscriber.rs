//! Subscribers that come late, are those of one thread, or hide the spans of the program. One test
//! only: the default subscriber of a process is set once.

use std::io;

use request_budget::db::{Query, SqlxEvents};
use request_budget::{Budget, BudgetExt, Usage};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Connection, SqlitePool};
use tokio::sync::oneshot;
use tracing::{Instrument, Level, event, info_span};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt};

/// The event that sqlx emits in the task of the caller, where the database is PostgreSQL or MySQL.
fn emit() {
    event!(
        target: "sqlx::query",
        Level::DEBUG,
        summary = "SELECT 1",
        db.statement = "",
        rows_returned = 1_u64,
        elapsed_secs = 0.001_f64,
    );
}

/// Executes a statement, and waits until the thread of SQLite has emitted its event.
async fn select(pool: &SqlitePool) {
    sqlx::query("SELECT 2 UNION SELECT 3").fetch_all(pool).await.expect("fetches");
    pool.acquire().await.expect("is there").ping().await.expect("answers");
}

async fn queries(work: impl Future<Output = ()>) -> u64 {
    let work = async {
        work.await;
        Usage::current().expect("inside").queries
    };
    work.budgeted("work", Budget::new()).await.expect("no limit")
}

#[tokio::test]
async fn what_cannot_be_told_is_nobodys_and_what_comes_after_is_exact() {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await;
    let pool = pool.expect("opens");
    let (go_on, until) = oneshot::channel();
    let early = {
        let pool = pool.clone();
        tokio::spawn(queries(async move {
            until.await.expect("it is sent");
            emit();
            // Its span is not known to any layer.
            select(&pool).await;
        }))
    };
    tokio::task::yield_now().await;

    // Of this thread alone: what is emitted on another one is not seen, and charged to nobody.
    {
        let events = tracing_subscriber::registry().with(SqlxEvents::new());
        let _guard = tracing::subscriber::set_default(events);
        let work = queries(async {
            emit();
            request_budget::task::spawn_blocking(emit).await.expect("no panic");
            select(&pool).await;
            emit();
        });
        assert_eq!(work.await, 2);
    }

    // Of the process, with a filter that hides the spans of the program, which its log takes.
    let only_sqlx = Targets::new().with_target("sqlx::query", LevelFilter::TRACE);
    let events = SqlxEvents::new().with_filter(only_sqlx);
    let log = fmt::layer().with_writer(io::sink).with_filter(LevelFilter::INFO);
    let subscriber = tracing_subscriber::registry().with(events).with(log);
    tracing::subscriber::set_global_default(subscriber).expect("the first");

    let unattributed = Query::unattributed();
    go_on.send(()).expect("it waits");
    assert_eq!(early.await.expect("no panic"), 1);
    assert_eq!(Query::unattributed() - unattributed, 1);

    let work = queries(async {
        emit();
        request_budget::task::spawn_blocking(emit).await.expect("no panic");
        for _ in 0..20 {
            select(&pool).instrument(info_span!("repository")).await;
        }
        select(&pool).await;
    });
    assert_eq!(work.instrument(info_span!("request")).await, 23);
    // And what is in no unit of work is nobody's.
    let unattributed = Query::unattributed();
    select(&pool).instrument(info_span!("start")).await;
    emit();
    assert_eq!(Query::unattributed().checked_sub(unattributed), Some(2));
}
