//! What a measurement makes of statements that are counted after the fact.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use request_budget::db::{SqlxEvents, executed};
use request_budget::sqlx::Pool;
use request_budget::testing::{Record, measure, scaling};
use request_budget::{Budget, BudgetExt, Limit};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;
use tracing::{Level, Subscriber, event};
use tracing_subscriber::layer::SubscriberExt;

use crate::events::plain_pool;

const MS: Duration = Duration::from_millis(1);

fn texts<T>(record: &Record<T>) -> Vec<(&str, u64, u64)> {
    let statements = record.statements().iter();
    statements.map(|one| (&*one.text, one.executions, one.rows)).collect()
}

/// The event that sqlx emits in the task of the caller, where the database is PostgreSQL or MySQL.
fn event_of(text: &str) {
    event!(
        target: "sqlx::query",
        Level::DEBUG,
        summary = text,
        db.statement = "",
        rows_affected = 0_u64,
        rows_returned = 1_u64,
        elapsed = "1ms",
        elapsed_secs = 0.001_f64,
    );
}

fn counting() -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(SqlxEvents::new())
}

#[tokio::test]
async fn statements_of_a_plain_pool_are_asserted_exactly() {
    let pool = plain_pool().await;
    let record = measure(async {
        for id in 1..=3 {
            sqlx::query("SELECT $1").bind(id).fetch_one(&pool).await.unwrap();
        }
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("CREATE TABLE posts (id INTEGER)").execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    })
    .await;
    let usage = record.usage();
    assert_eq!((usage.queries, usage.observed, usage.unmetered), (4, 4, 0), "{usage:?}");
    assert_eq!((usage.rows, usage.writes, usage.repeated_queries), (3, 1, 3));
    let expected = [("CREATE TABLE posts (id INTEGER)", 1, 0), ("SELECT ?", 3, 3)];
    assert_eq!(texts(&record), expected);
    for statement in record.statements() {
        assert!(statement.time > Duration::ZERO, "{statement:?}");
        let place = &statement.sites()[0].places[0];
        assert!(place.file.ends_with("tests/observed/measured.rs"), "{place}");
    }
    record.assert_queries(4);
    record.assert_no_unmetered();
    record.assert_within(Budget::new().queries(4).repeated_queries(3).rows(3).writes(1));
    for assertion in [
        &(|| record.assert_queries(3)) as &dyn Fn(),
        &|| record.assert_queries(5),
        &|| record.assert_within(Budget::new().rows(2)),
        &|| record.assert_within(Budget::new().writes(0)),
        &|| record.assert_no_repeated_statements(),
    ] {
        catch_unwind(AssertUnwindSafe(assertion)).unwrap_err();
    }
}

#[tokio::test]
async fn rows_of_an_event_that_comes_after_a_callback_are_counted() {
    let work = async {
        executed("SELECT 7", MS, 0);
        event_of("SELECT 7");
        event_of("SELECT 8");
        executed("SELECT 8", MS, 0);
    };
    let outer = measure(async {
        let inner = measure(work).await;
        assert_eq!(texts(&inner), [("SELECT ?", 2, 2)]);
    });
    let outer = outer.with_subscriber(counting()).await;
    assert_eq!((outer.usage().queries, outer.usage().rows), (2, 2));
    assert_eq!(texts(&outer), [("SELECT ?", 2, 2)]);
}

#[tokio::test]
async fn metered_and_plain_pools_of_one_database_are_told_apart() {
    let plain = plain_pool().await;
    let pool = Pool::from(plain.clone());
    let record = measure(async {
        for _ in 0..5 {
            sqlx::query("SELECT 1").fetch_one(&plain).await.unwrap();
            sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
        }
        sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
    })
    .await;
    let usage = record.usage();
    assert_eq!((usage.queries, usage.observed, usage.unmetered), (11, 5, 0), "{usage:?}");
    assert_eq!(usage.rows, 11);
    record.assert_queries(11);
}

#[tokio::test]
async fn an_inner_measurement_and_an_inner_unit_of_work_count_once() {
    let pool = plain_pool().await;
    let select = || async { sqlx::query("SELECT 1").fetch_one(&pool).await.map(drop).unwrap() };
    let outer = measure(async {
        select().await;
        let inner = measure(async {
            select().await;
            event_of("SELECT 2");
        });
        let inner = inner.await;
        inner.assert_queries(2);
        assert_eq!(texts(&inner), [("SELECT ?", 2, 2)]);
        select().budgeted("inner", Budget::new()).await.unwrap();
    })
    .await;
    outer.assert_queries(4);
    assert_eq!((outer.usage().observed, outer.usage().unmetered), (4, 0));
    assert_eq!(texts(&outer), [("SELECT ?", 4, 4)]);
}

#[tokio::test]
async fn a_hard_limit_cuts_measured_work() {
    let pool = plain_pool().await;
    let work = async {
        sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
        sqlx::query("SELECT 2").fetch_one(&pool).await.unwrap();
        std::future::pending::<()>().await;
    };
    let record = measure(work.budgeted("work", Budget::new().queries(Limit::hard(1)))).await;
    assert!(record.output().is_err());
    record.assert_queries(2);
}

#[tokio::test]
async fn what_grows_with_the_data_is_found_on_plain_pools() {
    let pool = plain_pool().await;
    let scaling = scaling([1, 3], async |n| {
        let pool = pool.clone();
        let work = async move {
            for id in 0..n {
                sqlx::query("SELECT $1").bind(id as i64).fetch_one(&pool).await.unwrap();
            }
        };
        measure(work).await
    })
    .await;
    let panic = catch_unwind(AssertUnwindSafe(|| scaling.assert_constant_queries())).unwrap_err();
    assert!(
        panic.downcast_ref::<String>().unwrap().contains("`SELECT ?`: 1 at size 1, 3 at size 3")
    );
}

#[tokio::test]
async fn a_callback_takes_back_what_its_event_has_shown_as_unmetered() {
    for events_first in [true, false] {
        let work = async {
            for text in ["SELECT 1", "SELECT 1", "DELETE FROM a"] {
                if events_first {
                    event_of(text);
                    executed(text, MS, 1);
                } else {
                    executed(text, MS, 1);
                    event_of(text);
                }
            }
            event_of("SELECT 1 FROM b");
        };
        let record = measure(work).with_subscriber(NoSubscriber::default()).await;
        let usage = record.usage();
        assert_eq!((usage.queries, usage.observed, usage.unmetered), (3, 3, 1), "{usage:?}");
        assert_eq!(texts(&record), [("DELETE FROM a", 1, 1), ("SELECT ?", 2, 2)]);
        let [unmetered] = record.unmetered() else { panic!("{:?}", record.unmetered()) };
        assert_eq!((&*unmetered.text, unmetered.executions), ("SELECT ? FROM b", 1));
        record.assert_queries(4);
    }
}

#[tokio::test]
async fn a_callback_and_the_layer_count_a_statement_once() {
    let work = async {
        for text in ["SELECT 1", "SELECT 1", "SELECT 2"] {
            event_of(text);
            executed(text, MS, 1);
        }
    };
    let record = measure(work).with_subscriber(counting()).await;
    assert_eq!(texts(&record), [("SELECT ?", 3, 3)]);
    assert_eq!((record.usage().observed, record.usage().unmetered), (3, 0));
    record.assert_queries(3);
    record.assert_no_unmetered();
}
