//! What reporters are told, how often, and what happens when they fail.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::Poll;

use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetExt, ExternalExt, Limit, Severity, Usage, Violation};
use tokio::task::yield_now;

use crate::support::{Given, Ledger, Script, Step, body, call, data, next, poll_once};

/// Work that makes so many calls.
async fn calls(number: u32) {
    for _ in 0..number {
        call();
        yield_now().await;
    }
}

fn run<F: Future>(work: F) -> F::Output {
    let mut work = std::pin::pin!(work);
    loop {
        if let Poll::Ready(output) = poll_once(work.as_mut()) {
            return output;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_reported_once_in_each_unit_of_work() {
    for _ in 0..2 {
        let ledger = Ledger::default();
        let work = calls(10).budgeted("task", Budget::new().external_calls(3));
        run(work.with_reporter(ledger.clone())).unwrap();
        let message = "task: 4 external calls, limit 3: call to \"payments\", 4 times";
        assert_eq!(ledger.messages(), [message], "at the crossing, not at the end");
        assert_eq!(ledger.end().violations, 1);
    }
}

#[test]
fn what_is_not_more_than_the_limit_is_not_over_it() {
    let ledger = Ledger::default();
    let work = calls(3).budgeted("task", Budget::new().external_calls(Limit::soft(3).and_hard(3)));
    run(work.with_reporter(ledger.clone())).unwrap();
    assert_eq!((ledger.messages(), ledger.outcomes()), (vec![], vec![Outcome::Ok]));
}

#[tokio::test(start_paused = true)]
async fn a_hard_limit_after_a_soft_one_reports_both_once() {
    let ledger = Ledger::default();
    let work = async {
        let mut refused = 0;
        for _ in 0..6 {
            refused += u32::from(ready(()).external("payments").await.is_err());
        }
        assert_eq!(refused, 3);
    };
    let work = work.budgeted("task", Budget::new().external_calls(Limit::soft(1).and_hard(3)));
    run(work.with_reporter(ledger.clone())).unwrap_err();
    assert_eq!(
        ledger.messages(),
        [
            "task: 2 external calls, limit 1: call to \"payments\", 2 times",
            "task: 4 external calls, limit 3: call to \"payments\", 3 times",
        ]
    );
    let severities = ledger.violations().iter().map(|v| v.severity).collect::<Vec<_>>();
    assert_eq!(severities, [Severity::Soft, Severity::Hard]);
    assert_eq!(ledger.end().violations, 1, "one limit of one resource");
}

#[test]
fn a_hard_limit_crossed_at_once_says_all() {
    let ledger = Ledger::default();
    let budget = Budget::new().response_bytes(Limit::soft(1).and_hard(3));
    let mut body = body(budget, &ledger, Script::new([Step::Data("abcd"), Step::Data("e")]));
    assert!(matches!(next(&mut body), Given::Cut(_)));
    assert_eq!(ledger.messages(), ["GET (no route): 4 B of response body, limit 3 B"]);
}

#[tokio::test(start_paused = true)]
async fn each_resource_is_reported_for_itself() {
    let ledger = Ledger::default();
    let budget = Budget::new().response_bytes(0).external_calls(0);
    let mut future = crate::support::handled(budget, &ledger, async {
        call();
        Script::new([Step::Data("a")]).telling_its_end()
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(next(&mut answer.into_body()), data("a"));
    assert_eq!(
        ledger.messages(),
        [
            "GET (no route): 1 external call, limit 0: call to \"payments\"",
            "GET (no route): 1 B of response body, limit 0 B",
        ]
    );
    assert_eq!(ledger.end().violations, 2);
}

#[test]
fn each_unit_of_work_tells_its_own_reporter() {
    let (inner, outer) = (Ledger::default(), Ledger::default());
    let work = calls(2).budgeted("inner", Budget::new().external_calls(1));
    let work = work.with_reporter(inner.clone());
    let work = work.budgeted("outer", Budget::new()).with_reporter(outer.clone());
    run(work).unwrap().unwrap();
    assert_eq!((inner.messages().len(), outer.messages().len()), (1, 0));
    assert_eq!((inner.end().work, outer.end().work), ("inner".to_owned(), "outer".to_owned()));
}

#[test]
fn a_closure_is_a_reporter() {
    let told = Arc::new(AtomicU32::new(0));
    let reporter = {
        let told = told.clone();
        move |_: &Violation| {
            told.fetch_add(1, Relaxed);
        }
    };
    run(calls(2).budgeted("task", Budget::new().external_calls(1)).with_reporter(reporter))
        .unwrap();
    assert_eq!(told.load(Relaxed), 1);
}

#[test]
fn a_reporter_may_ask_for_the_usage() {
    let seen = Arc::new(AtomicU32::new(0));
    let reporter = {
        let seen = seen.clone();
        move |_: &Violation| {
            let usage = Usage::current().expect("the work that crossed the limit");
            seen.store(u32::try_from(usage.external_calls).expect("few"), Relaxed);
        }
    };
    run(calls(9).budgeted("task", Budget::new().external_calls(4)).with_reporter(reporter))
        .unwrap();
    assert_eq!(seen.load(Relaxed), 5);
}

/// Panics whenever it is told something.
struct Broken;

impl Reporter for Broken {
    fn violation(&self, _: &Violation) {
        panic!("a reporter that panics at a violation")
    }

    fn finished(&self, _: &Report<'_>) {
        panic!("a reporter that panics at the end")
    }
}

#[test]
fn a_reporter_that_panics_does_not_hurt_the_work() {
    let work = async {
        calls(2).await;
        Usage::current().unwrap().external_calls
    };
    let work = work.budgeted("task", Budget::new().external_calls(0)).with_reporter(Broken);
    assert_eq!(run(work), Ok(2));
    assert_eq!(Usage::current(), None);
}

#[test]
fn a_reporter_that_panics_does_not_stop_a_cut() {
    let work = async { ready(()).external("payments").await };
    let work = work.budgeted("task", Budget::new().external_calls(Limit::hard(0)));
    assert!(run(work.with_reporter(Broken)).is_err());
}

#[test]
fn a_reporter_that_panics_does_not_hurt_the_work_around_it() {
    let ledger = Ledger::default();
    let inner = calls(2).budgeted("inner", Budget::new().external_calls(0)).with_reporter(Broken);
    let outer = inner.budgeted("outer", Budget::new().external_calls(1));
    run(outer.with_reporter(ledger.clone())).unwrap().unwrap();
    assert_eq!(ledger.messages().len(), 1);
    assert_eq!(ledger.calls(), [("outer".to_owned(), 2)]);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn a_reporter_that_panics_while_a_panic_unwinds_does_not_abort() {
    let work = async {
        call();
        panic!("a task that panics")
    };
    let work = work.budgeted("task", Budget::new().external_calls(0)).with_reporter(Broken);
    let mut work = Box::pin(work);
    crate::support::panics(move || poll_once(work.as_mut()).is_ready());
    assert_eq!(Usage::current(), None);
}
