//! Background tasks.

use std::future::{pending, ready};
use std::time::Duration;

use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, Cut, ExternalExt, Limit, Resource, Usage};
use sqlx::Executor;
use tokio::time::Instant;

use crate::{Ledger, pool};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_task_is_counted_and_returns_what_it_returns() {
    let (ledger, pool) = (Ledger::default(), pool(3).await);
    let job = async move {
        for _ in 0..4 {
            pool.fetch_all("SELECT id FROM items").await.expect("a good statement");
        }
        7
    };
    let job = job.budgeted("send_invoices", Budget::new().queries(2)).with_reporter(ledger.clone());
    assert_eq!(tokio::spawn(job).await.expect("no panic"), Ok(7));
    let (work, outcome, usage) = ledger.end();
    assert_eq!((&*work, outcome), ("send_invoices", Outcome::Ok));
    assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (4, 4, 12));
    let [said] = <[String; 1]>::try_from(ledger.violations()).expect("once, not once a query");
    assert!(
        said.starts_with("send_invoices: 3 queries, limit 2: `SELECT id FROM items`"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_is_cut_at_its_deadline() {
    let (ledger, started) = (Ledger::default(), Instant::now());
    let job = pending::<()>().budgeted("nightly", Budget::new().total_time(MINUTE));
    let cut = job.with_reporter(ledger.clone()).await.expect_err("it never ends");
    assert_eq!((cut.violation().resource, started.elapsed()), (Resource::TotalTime, MINUTE));
    assert_eq!(cut.to_string(), "nightly was cut: 60s in total, limit 60s: own code");
    assert_eq!(ledger.end().1, Outcome::Cut);
}

#[tokio::test]
async fn a_task_that_tries_again_and_again_past_a_hard_limit_is_cut() {
    let pool = pool(0).await;
    let job = async {
        while pool.execute("SELECT 1").await.is_ok() {}
        // Refused for good: without a cut this would never yield to anybody.
        while pool.execute("SELECT 1").await.is_err() {}
    };
    let cut = job.budgeted("retry", Budget::new().queries(Limit::hard(2))).await;
    assert_eq!(cut.expect_err("nothing else ends it").violation().resource, Resource::Queries);
    pool.execute("SELECT 1").await.expect("the pool is free, and no scope is left");
}

#[tokio::test]
async fn a_call_past_a_hard_limit_is_refused() {
    let mut answers = Vec::new();
    let job = async {
        for _ in 0..2 {
            answers.push(ready(()).external("payments").await.is_ok());
        }
        pending::<()>().await;
    };
    let cut: Result<(), Cut> =
        job.budgeted("calls", Budget::new().external_calls(Limit::hard(1))).await;
    assert_eq!(cut.expect_err("it is cut").violation().resource, Resource::ExternalCalls);
    assert_eq!(answers.first(), Some(&true));
    assert_eq!(answers.iter().filter(|is_ok| **is_ok).count(), 1);
    assert_eq!(Usage::current(), None);
}
