//! Pools that nobody wrapped.

use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt};
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::Registry;

use super::{metered, plain, plain_logging, query, warns};
use crate::failure;

#[tokio::test]
async fn a_plain_pool_that_logs_at_trace() {
    let (plain, _pool) = (plain_logging("trace").await, metered().await);
    let record = measure(query(&plain)).await;
    failure(|| record.assert_queries(0));
    let said = failure(|| record.assert_no_unmetered());
    assert!(said.starts_with("1 statement passed through no metered connection\n"), "{said}");
}

#[tokio::test]
async fn a_plain_pool_that_logs_at_trace_beside_a_statement_of_ones_own() {
    let (plain, pool) = (plain_logging("trace").await, metered().await);
    let record = measure(async {
        query(&pool).await;
        query(&plain).await;
    });
    let record = record.await;
    failure(|| record.assert_queries(1));
    failure(|| record.assert_no_unmetered());
}

#[tokio::test]
async fn a_plain_pool_whose_logging_is_off() {
    let (plain, pool) = (plain_logging("off").await, metered().await);
    for own in [0, 1] {
        let record = measure(async {
            for _ in 0..own {
                query(&pool).await;
            }
            query(&plain).await;
        });
        let record = record.await;
        failure(|| record.assert_queries(own));
        failure(|| record.assert_no_unmetered());
    }
}

const MASKED: &str =
    "the work puts a default subscriber of its own in the place of that of the measurement";

#[tokio::test]
async fn a_default_subscriber_of_ones_own() {
    let (plain, _pool) = (plain().await, metered().await);
    let work = async { query(&plain).with_subscriber(Registry::default()).await };
    let record = measure(work).await;
    let said = failure(|| record.assert_queries(0));
    assert!(said.contains(MASKED), "{said}");
    let said = failure(|| record.assert_no_unmetered());
    assert!(said.contains(MASKED), "{said}");
}

#[tokio::test]
async fn a_default_subscriber_that_was_made_before() {
    let (plain, pool) = (plain().await, metered().await);
    let dispatch = Dispatch::new(Registry::default());
    let record = measure(query(&plain).with_subscriber(dispatch.clone())).await;
    let said = failure(|| record.assert_queries(0));
    assert!(said.contains(MASKED), "{said}");
    // Around something that this library runs, and beside statements that are seen.
    let work = async {
        let inner = query(&plain).budgeted("inner", Budget::new());
        inner.with_subscriber(dispatch).await.unwrap();
        query(&pool).await;
    };
    let record = measure(work).await;
    let said = failure(|| record.assert_no_unmetered());
    assert!(said.contains(MASKED), "{said}");
}

#[tokio::test]
async fn a_default_subscriber_of_ones_own_beside_a_statement_of_ones_own() {
    let test = "plain::a_default_subscriber_of_ones_own_beside_a_statement_of_ones_own";
    warns(test, &[MASKED, "around the measurement"], async {
        let (plain, pool) = (plain().await, metered().await);
        let record = measure(async {
            query(&plain).with_subscriber(Registry::default()).await;
            query(&pool).await;
        });
        record.await.assert_queries(1);
    })
    .await;
}
