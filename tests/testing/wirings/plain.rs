//! Pools that nobody wrapped.

use request_budget::testing::measure;

use super::{metered, plain_logging, query};
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
