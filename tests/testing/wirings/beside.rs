//! What is not part of the measured future, beside statements that are.

use request_budget::sqlx::Pool;
use request_budget::testing::{measure, scaling, unrelated};
use request_budget::{Budget, task};
use sqlx::Sqlite;

use super::{metered, query};
use crate::failure;

#[tokio::test]
async fn a_task_that_is_not_carried_along_beside_a_statement_of_ones_own() {
    let pool = metered().await;
    let work = async |pool: Pool<Sqlite>, spawned: u64| {
        query(&pool).await;
        for _ in 0..spawned {
            let pool = pool.clone();
            tokio::spawn(async move { query(&pool).await }).await.unwrap();
        }
    };
    let record = measure(work(pool.clone(), 1)).await;
    let said = failure(|| record.assert_queries(1));
    let first = "the test counts queries, but the work itself may not have executed all, while 1 \
                 statement ran in other tasks\n";
    assert!(said.starts_with(first), "{said}");
    assert!(said.contains("`.in_current_budget()`"), "{said}");
    failure(|| record.assert_within(Budget::new().queries(1)));
    failure(|| record.assert_no_repeated_statements());

    let run = scaling([1, 3], async |n| measure(work(pool.clone(), n)).await).await;
    let said = failure(|| run.assert_constant_queries());
    let first = "the test counts queries at size 1, but the work itself may not have executed all, \
                 while 1 statement ran in other tasks\n";
    assert!(said.starts_with(first), "{said}");

    let apart = async |pool: Pool<Sqlite>| {
        query(&pool).await;
        tokio::spawn(unrelated(async move { query(&pool).await })).await.unwrap();
    };
    measure(apart(pool.clone())).await.assert_queries(1);
}

#[tokio::test]
async fn what_is_carried_along_and_not_waited_for_beside_a_statement_of_ones_own() {
    let pool = metered().await;
    let record = measure(async {
        query(&pool).await;
        let pool = pool.clone();
        [task::spawn(async move { query(&pool).await })]
    });
    let record = record.await;
    let said = failure(|| record.assert_queries(1));
    let first =
        "the test counts queries, but 1 task that was carried along was still running at its end\n";
    assert!(said.starts_with(first), "{said}");
    let [child] = record.into_output();
    child.await.unwrap();
}
