//! What a violation of a time says about where the time went.

use std::future::pending;
use std::time::Duration;

use request_budget::db::Query;
use request_budget::{Budget, BudgetExt, Cause, Cut, ExternalExt, Violation};
use tokio::time::sleep;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs this with a total time of 30 s, which it exceeds.
async fn cut<F: Future<Output = ()>>(work: F) -> Violation {
    let cut: Cut = work.budgeted("job", Budget::new().total_time(ms(30_000))).await.unwrap_err();
    cut.violation().clone()
}

async fn statement(text: &str, time: Duration) {
    let query = Query::begin(text).await.unwrap();
    sleep(time).await;
    drop(query);
}

#[tokio::test(start_paused = true)]
async fn the_statement_in_flight_is_the_cause() {
    let violation = cut(async {
        statement("SELECT 1", ms(20)).await;
        statement("INSERT INTO posts", ms(60_000)).await;
    });
    let violation = violation.await;
    let expected = "job: 30s in total, limit 30s: `INSERT INTO posts`, in flight for 30s";
    assert_eq!(violation.to_string(), expected);
    let Some(Cause::Statement { executions: 1, time, waiting, .. }) = violation.cause else {
        panic!("{violation:?}")
    };
    assert_eq!((time, waiting), (ms(29_980), Some(ms(29_980))));
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_waits_between_its_rows_is_not_in_flight() {
    let violation = cut(async {
        let mut query = Query::begin("SELECT 1").await.unwrap();
        sleep(ms(10)).await;
        query.pause();
        pending::<()>().await;
    });
    assert_eq!(violation.await.cause.unwrap().name(), "own_code");
}

#[tokio::test(start_paused = true)]
async fn many_short_statements_are_the_cause_together() {
    let violation = cut(async {
        for _ in 0..250 {
            statement("SELECT name", ms(100)).await;
        }
        statement("SELECT title", ms(60_000)).await;
    });
    let expected = "job: 30s in total, limit 30s: `SELECT name`, 250 times, 25s in all";
    assert_eq!(violation.await.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_call_in_flight_is_the_cause() {
    let violation = cut(async {
        sleep(ms(1_000)).external("payments").await.unwrap();
        pending::<()>().external("payments").await.unwrap();
    });
    let expected = "job: 30s in total, limit 30s: call to \"payments\", in flight for 29s, 2 times, 30s in all";
    assert_eq!(violation.await.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn of_inner_work_it_is_a_cause_of_the_outer_one_as_well() {
    let inner = statement("SELECT 1", ms(60_000)).budgeted("inner", Budget::new());
    let violation = cut(async { inner.await.unwrap() }).await;
    assert_eq!(violation.cause.unwrap().waiting(), Some(ms(30_000)));
}

#[tokio::test(start_paused = true)]
async fn own_code_is_the_cause_where_nothing_counted_took_long() {
    let violation = cut(async {
        statement("SELECT 1", ms(2_000)).await;
        pending::<()>().await;
    });
    assert_eq!(violation.await.to_string(), "job: 30s in total, limit 30s: own code");

    let budget = Budget::new().total_time(ms(100)).poll_time(ms(1_000));
    let work = async {
        tokio::time::advance(ms(80)).await;
        pending::<()>().await;
    };
    let cut = work.budgeted("job", budget).await.unwrap_err();
    let message = cut.violation().to_string();
    assert!(
        message.starts_with("job: 100ms in total, limit 100ms: own code, longest poll "),
        "{message}"
    );
}
