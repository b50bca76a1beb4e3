//! Pools that nobody wrapped, whatever they log.

use std::io::{Write, stderr};

use request_budget::Budget;
use request_budget::testing::measure;
use sqlx::{Executor, SqlitePool};

use super::{
    Known, assert_place, assert_says, failure, known, metered, plain_logging, query, warnings,
};

/// Three statements, one of them by `fetch_all` and one in a transaction.
async fn three(plain: &SqlitePool) {
    plain.execute("SELECT 1").await.expect("a good statement");
    plain.fetch_all("SELECT 1").await.expect("a good statement");
    let mut transaction = plain.begin().await.expect("begins");
    transaction.execute("SELECT 1").await.expect("a good statement");
    transaction.commit().await.expect("commits");
}

/// The line of the first statement of [`three`].
const FIRST: u32 = line!() - 8;

#[tokio::test]
async fn a_plain_pool_that_logs_is_counted_at_every_level() {
    let _metered = metered().await;
    for level in ["trace", "debug", "info", "warn", "error"] {
        let plain = plain_logging(level).await;
        let record = measure(three(&plain)).await;
        assert_eq!(record.usage().unmetered, 3, "{level}");
    }
}

#[tokio::test]
async fn a_plain_pool_that_logs_fails_every_assertion_on_statements() {
    let pool = metered().await;
    for level in ["trace", "debug", "info"] {
        let plain = plain_logging(level).await;
        let record = measure(three(&plain)).await;
        let said = failure(|| record.assert_no_unmetered());
        assert_says(&said, "3 statements passed through no metered connection\n");
        assert_place(&said, "plain.rs", FIRST);
        let said = failure(|| record.assert_queries(0));
        assert_says(&said, "while 3 statements ran unmetered\n");
        assert_place(&said, "plain.rs", FIRST);
        failure(|| record.assert_no_repeated_statements());
        failure(|| record.assert_within(Budget::new().queries(2)));

        // A statement of one's own does not make up for them.
        let record = measure(async {
            query(&pool).await;
            three(&plain).await;
        });
        let record = record.await;
        assert_eq!((record.usage().queries, record.usage().unmetered), (1, 3), "{level}");
        failure(|| record.assert_queries(1));
        failure(|| record.assert_no_unmetered());
    }
}

const OFF: &str = "of whose statements sqlx makes no event: their logging is switched off";

#[tokio::test]
async fn a_plain_pool_that_logs_nothing_is_counted_or_fails() {
    let (pool, plain) = (metered().await, plain_logging("off").await);
    let record = measure(three(&plain)).await;
    let unmetered = record.usage().unmetered;
    assert!(unmetered == 3 || unmetered == 0, "{unmetered}");
    assert!(unmetered == 0 || known() != Known::Nothing, "nothing is known of who asks");
    let said = failure(|| record.assert_no_unmetered());
    match unmetered {
        0 => assert_says(&said, OFF),
        _ => {
            assert_says(&said, "3 statements passed through no metered connection\n");
            assert_place(&said, "plain.rs", FIRST);
        }
    }
    assert_says(&said, "`request_budget::sqlx::Pool::from(pool)`");
    failure(|| record.assert_queries(0));
    failure(|| record.assert_no_repeated_statements());
    failure(|| record.assert_within(Budget::new().queries(2)));

    let record = measure(async {
        query(&pool).await;
        three(&plain).await;
    });
    let record = record.await;
    assert_eq!((record.usage().queries, record.usage().unmetered), (1, unmetered));
    failure(|| record.assert_no_unmetered());
}

#[tokio::test]
async fn a_plain_pool_that_logs_nothing_beside_a_statement_of_ones_own() {
    let test = "plain::a_plain_pool_that_logs_nothing_beside_a_statement_of_ones_own";
    let said = warnings(test, async {
        let (pool, plain) = (metered().await, plain_logging("off").await);
        let record = measure(async {
            query(&pool).await;
            three(&plain).await;
        });
        let record = record.await;
        match record.usage().unmetered {
            0 => record.assert_queries(1),
            // Past the harness, which keeps what a test prints.
            _ => writeln!(stderr().lock(), "{}", failure(|| record.assert_queries(1)))
                .expect("it is open"),
        }
    });
    if let Some(said) = said.await {
        let is_counted = said.contains("unmetered statements: 3, in no count");
        assert!(is_counted || said.contains(OFF), "{said}");
    }
}
