//! Events, texts and spans that are not as they should be: counted right, or for nobody.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use request_budget::db::{Query, SqlxEvents, executed};
use request_budget::{Budget, BudgetExt, Usage, Violation};
use sqlx::{AssertSqlSafe, SqlitePool};
use tokio::sync::oneshot;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, Level, Span, event, info_span};
use tracing_subscriber::layer::SubscriberExt;

use crate::events::{plain_pool, settle};

async fn usage_of(work: impl Future<Output = ()>) -> Usage {
    let work = async {
        work.await;
        Usage::current().unwrap()
    };
    work.budgeted("work", Budget::new()).await.unwrap()
}

async fn select(pool: &SqlitePool) {
    sqlx::query("SELECT 1").fetch_one(pool).await.unwrap();
}

#[tokio::test]
async fn events_of_others_with_the_target_of_sqlx_count_nothing() {
    let work = async {
        event!(target: "sqlx::query", Level::DEBUG, "a message");
        event!(target: "sqlx::query", Level::ERROR, summary = "SELECT 1", rows_returned = 1_u64);
        event!(target: "sqlx::query", Level::DEBUG, elapsed_secs = 0.5_f64, rows_returned = 1_u64);
        event!(target: "sqlx::query", Level::DEBUG, summary = "", elapsed_secs = 0.5_f64);
        event!(target: "sqlx::query", Level::DEBUG, summary = 7, elapsed_secs = 0.5_f64);
        event!(target: "sqlx::query", Level::DEBUG, summary = "SELECT 1", elapsed_secs = "fast");
        for seconds in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            let summary = "SELECT 1";
            event!(target: "sqlx::query", Level::DEBUG, summary, elapsed_secs = seconds);
        }
        event!(target: "sqlx", Level::DEBUG, summary = "SELECT 1", elapsed_secs = 0.5_f64);
        event!(target: "sqlx::query::slow", Level::DEBUG, summary = "A", elapsed_secs = 0.5_f64);
    };
    let subscriber = tracing_subscriber::registry().with(SqlxEvents::new());
    let usage = usage_of(work).with_subscriber(subscriber).await;
    assert_eq!((usage.queries, usage.observed, usage.unmetered, usage.rows), (0, 0, 0, 0));
    assert_eq!(usage.query_time, Duration::ZERO);
}

#[tokio::test]
async fn texts_of_a_megabyte_are_told_apart_and_not_reported_whole() {
    let pool = plain_pool().await;
    let [one, other] = ["a", "b"].map(|last| format!("SELECT '{}{last}'", "x".repeat(1 << 20)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reporter = {
        let seen = seen.clone();
        move |violation: &Violation| seen.lock().unwrap().push(violation.to_string())
    };
    let work = async {
        for text in [&one, &other, &one] {
            let select = sqlx::query(AssertSqlSafe(text.clone()));
            select.fetch_one(&pool).await.unwrap();
            executed(text, Duration::ZERO, 1);
        }
        settle(&pool).await;
        Usage::current().unwrap()
    };
    let budget = Budget::new().repeated_queries(1).queries(2);
    let usage = work.budgeted("work", budget).with_reporter(reporter).await.unwrap();
    assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (3, 2, 3));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().all(|violation| violation.len() < 1_000), "{:?}", seen[0].len());
}

#[tokio::test]
async fn statements_in_no_unit_of_work_are_not_charged_to_one_that_runs_meanwhile() {
    let pool = plain_pool().await;
    let (end, until_end) = oneshot::channel();
    let beside = tokio::spawn(usage_of(async { until_end.await.unwrap() }));
    tokio::task::yield_now().await;
    let before = Query::unattributed();
    for _ in 0..3 {
        select(&pool).await;
        select(&pool).instrument(info_span!("migration")).await;
    }
    settle(&pool).await;
    end.send(()).unwrap();
    assert_eq!(beside.await.unwrap().queries, 0);
    // Other tests may add to it, none takes away.
    assert!(Query::unattributed() >= before + 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_one_span_are_told_apart() {
    let pool = plain_pool().await;
    let shared = info_span!("server");
    let request = |n: u64| {
        let pool = pool.clone();
        let work = usage_of(async move {
            for _ in 0..n % 7 {
                select(&pool).instrument(info_span!("repository")).await;
            }
            settle(&pool).await;
        });
        tokio::spawn(work.instrument(shared.clone()))
    };
    for (n, usage) in join_all((0..50).map(request)).await.into_iter().enumerate() {
        assert_eq!(usage.unwrap().queries, n as u64 % 7, "{n}");
    }
}

#[tokio::test]
async fn a_statement_in_the_span_of_another_request_is_charged_to_neither() {
    let pool = plain_pool().await;
    let (hand_over, handed_over) = oneshot::channel::<Span>();
    let (end, until_end) = oneshot::channel();
    let first = {
        let pool = pool.clone();
        tokio::spawn(usage_of(async move {
            select(&pool).await;
            hand_over.send(info_span!("connection")).unwrap();
            until_end.await.unwrap();
            settle(&pool).await;
        }))
    };
    let span = handed_over.await.unwrap();
    let second = usage_of(async {
        select(&pool).await;
        for _ in 0..3 {
            select(&pool).instrument(span.clone()).await;
        }
        settle(&pool).await;
    });
    assert_eq!(second.await.queries, 1);
    end.send(()).unwrap();
    assert_eq!(first.await.unwrap().queries, 1);
}

#[tokio::test]
async fn a_span_that_is_made_before_the_work_belongs_to_the_work_that_enters_it() {
    let pool = plain_pool().await;
    let work = async {
        for _ in 0..3 {
            select(&pool).instrument(info_span!("repository")).await;
        }
        settle(&pool).await;
    };
    let job = info_span!("job");
    assert_eq!(usage_of(work.instrument(job.clone())).await.queries, 3);
    // Where one that ended has left something behind, it cannot be told from what comes now.
    let next = async {
        select(&pool).await;
        settle(&pool).await;
    };
    assert_eq!(usage_of(next.instrument(job)).await.queries, 0);
}
