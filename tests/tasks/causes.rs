//! What a violation of a time, or of memory, says about where it went.

use std::future::pending;
use std::hint::black_box;
use std::time::Duration;

use request_budget::db::Query;
use request_budget::{Budget, BudgetExt, Cause, Cut, ExternalExt, Violation};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::support::{Ledger, ms, pass};

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

const MIB: u64 = 1 << 20;

/// Runs this until it holds more than 1 MiB, and tells why that was.
async fn full<F: Future<Output = ()>>(work: F) -> Violation {
    let ledger = Ledger::default();
    let budget = Budget::new().memory(MIB);
    work.budgeted("job", budget).with_reporter(ledger.clone()).await.unwrap();
    let [violation] = <[Violation; 1]>::try_from(ledger.violations()).expect("one violation");
    violation
}

fn bytes(of: u64) -> Vec<u8> {
    black_box(vec![1; usize::try_from(of).unwrap()])
}

/// Takes so many bytes in each of four polls.
async fn four_times(of: u64) -> Vec<Vec<u8>> {
    let mut pieces = Vec::with_capacity(4);
    for _ in 0..4 {
        pieces.push(bytes(of));
        yield_now().await;
    }
    pieces
}

#[tokio::test(start_paused = true)]
async fn the_statement_during_which_most_was_allocated_is_the_cause() {
    let violation = full(async {
        // Over, and of no account.
        statement("SELECT 1", ms(10)).await;
        let before = bytes(MIB / 8);
        let query = Query::begin("SELECT body FROM posts").await.unwrap();
        let rows = four_times(MIB / 3).await;
        drop(query);
        drop((before, rows));
    });
    let violation = violation.await;
    let expected = "job: 1.1 MiB of memory at peak, limit 1.0 MiB: `SELECT body FROM posts`, \
                    in flight for 0ns, 1.0 MiB allocated";
    assert_eq!(violation.to_string(), expected);
    let cause = violation.cause.unwrap();
    assert!((MIB..MIB + 1_000).contains(&cause.allocated().unwrap()), "{cause:?}");
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_begins_when_the_memory_is_taken_is_not_the_cause() {
    let violation = full(async {
        let first = bytes(MIB / 3);
        yield_now().await;
        let second = bytes(MIB);
        let query = Query::begin("SELECT 1").await.unwrap();
        yield_now().await;
        drop((first, second, query));
    });
    let expected =
        "job: 1.3 MiB of memory at peak, limit 1.0 MiB: own code, up to 1.0 MiB in one poll";
    let violation = violation.await;
    assert_eq!(violation.to_string(), expected);
    let Some(Cause::OwnCode { longest_poll: None, allocated: Some(most), .. }) = violation.cause
    else {
        panic!("{violation:?}")
    };
    assert!((MIB..MIB + 1_000).contains(&most), "{most}");
}

#[tokio::test(start_paused = true)]
async fn statements_are_blamed_together_and_after_their_end() {
    let violation = full(async {
        let mut kept = Vec::new();
        for _ in 0..5 {
            let query = Query::begin("SELECT body").await.unwrap();
            kept.push(bytes(MIB * 3 / 10));
            drop(query);
            yield_now().await;
        }
    });
    let message = violation.await.to_string();
    assert!(message.ends_with(": `SELECT body`, 4 times, 1.2 MiB allocated in all"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn the_call_during_which_most_was_allocated_is_the_cause_of_the_outer_work_too() {
    let ledger = Ledger::default();
    let budget = || Budget::new().memory(MIB);
    let call = async { four_times(MIB / 3).external("export").await.map(drop) };
    let inner = call.budgeted("inner", budget()).with_reporter(ledger.clone());
    let outer = async {
        let before = bytes(MIB / 8);
        inner.await.unwrap().unwrap();
        drop(before);
    };
    outer.budgeted("outer", budget()).with_reporter(ledger.clone()).await.unwrap();
    let causes = ledger.violations().into_iter().map(|violation| violation.cause.unwrap());
    let told: Vec<_> = causes.map(|cause| (cause.name(), cause.waiting().is_some())).collect();
    assert_eq!(told, [("external", true); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_too_long_is_own_code() {
    let ledger = Ledger::default();
    let work = async { pass(ms(30)) }.budgeted("job", Budget::new().poll_time(ms(25)));
    work.with_reporter(ledger.clone()).await.unwrap();
    let [violation] = <[Violation; 1]>::try_from(ledger.violations()).expect("one violation");
    assert_eq!(violation.to_string(), "job: 30ms in one poll, limit 25ms");
    let Some(Cause::OwnCode { longest_poll, .. }) = violation.cause else { panic!("no cause") };
    assert_eq!(longest_poll, Some(ms(30)));
}
