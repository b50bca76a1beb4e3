//! What is wired as it should be: exact, in its place, and without a warning.

use std::time::Duration;

use request_budget::testing::measure;
use request_budget::{Budget, task};
use sqlx::Executor;

use super::{Known, STRIPPED, assert_place, assert_says, failure, known, metered, query, warnings};

#[tokio::test]
async fn an_n_plus_one_is_named_with_its_place() {
    const LINE: u32 = line!() + 4;
    let pool = metered().await;
    let record = measure(async {
        for key in 0..10 {
            sqlx::query("SELECT $1").bind(key).execute(&pool).await.expect("a good statement");
        }
    });
    let record = record.await;
    assert_eq!((record.usage().queries, record.usage().repeated_queries), (10, 10));
    record.assert_queries(10);
    record.assert_no_unmetered();
    for said in [
        failure(|| record.assert_no_repeated_statements()),
        failure(|| record.assert_within(Budget::new().queries(1))),
        failure(|| record.assert_queries(1)),
    ] {
        assert_says(&said, "\n    10x SELECT ?  <- repeated\n");
        assert_place(&said, "metered.rs", LINE);
    }
}

/// Demands that nothing was written but, by a program that was stripped, that it cannot know who
/// has woken the work.
#[track_caller]
fn assert_quiet(said: &str) {
    let [all, stripped] = ["request-budget: warning: ", STRIPPED].map(|w| said.matches(w).count());
    // Where nobody had to wake it, there is nothing to be known.
    let most = if known() == Known::Nothing { 1 } else { 0 };
    assert!(all == stripped && all <= most, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wired_well_warns_of_nothing() {
    let test = "metered::what_is_wired_well_warns_of_nothing";
    let said = warnings(test, async {
        let pool = metered().await;
        let record = measure(async {
            query(&pool).await;
            let mut transaction = pool.begin().await.expect("begins");
            transaction.execute("SELECT 2").await.expect("a good statement");
            transaction.commit().await.expect("commits");
            let pool = pool.clone();
            task::spawn(async move { query(&pool).await }).await.expect("no panic");
        });
        let record = record.await;
        record.assert_queries(3);
        record.assert_within(Budget::new().queries(3).transactions(1));
        record.assert_no_unmetered();
    });
    if let Some(said) = said.await {
        assert_quiet(&said);
    }
}

#[tokio::test]
async fn a_clock_that_is_waited_for_warns_of_nothing() {
    let test = "metered::a_clock_that_is_waited_for_warns_of_nothing";
    let said = warnings(test, async {
        let _metered = metered().await;
        tokio::time::pause();
        let record = measure(tokio::time::sleep(Duration::from_secs(60))).await;
        record.assert_queries(0);
    });
    if let Some(said) = said.await {
        assert_quiet(&said);
    }
}
