//! The same misbehaving code, run as a request and as a job, gives the same numbers and violations.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use request_budget::db::Query;
use request_budget::report::Outcome;
use request_budget::task::{Blocking, TaskBudgetLayer};
use request_budget::{Budget, BudgetExt, BudgetLayer, Cut, ExternalExt, Limit, Usage, Violation};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Ledger, ms, pass};

/// One thing that bad code does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// One of a few statements, for so long, with so many rows.
    Query(u8, u64, u64),
    /// A call to one of a few systems that takes so long.
    Call(u8, u64),
    /// Computes without a pause.
    Compute(u64),
    Sleep(u64),
    Yield,
    /// Keeps so many bytes to its end.
    Keep(usize),
    Leak(usize),
    /// Uses so many for a moment.
    Use(usize),
    /// Goes on as if nothing had been refused.
    Ignore,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = 1..50_000_usize;
    prop_oneof![
        4 => (0..3_u8, 0..8_u64, 0..40_u64).prop_map(|(n, time, rows)| Step::Query(n, time, rows)),
        2 => (0..2_u8, 0..20_u64).prop_map(|(n, time)| Step::Call(n, time)),
        1 => (1..10_u64).prop_map(Step::Compute),
        1 => (1..30_u64).prop_map(Step::Sleep),
        1 => Just(Step::Yield),
        1 => bytes.clone().prop_map(Step::Keep),
        1 => bytes.clone().prop_map(Step::Leak),
        1 => bytes.prop_map(Step::Use),
        1 => Just(Step::Ignore),
    ]
}

fn limit(most: u64) -> impl Strategy<Value = Option<Limit<u64>>> {
    proptest::option::of(
        (0..=most, any::<bool>())
            .prop_map(|(value, hard)| if hard { Limit::hard(value) } else { Limit::soft(value) }),
    )
}

fn time_limit(most: u64) -> impl Strategy<Value = Option<Limit<Duration>>> {
    proptest::option::of((0..=most, any::<bool>()).prop_map(|(value, hard)| {
        if hard { Limit::hard(ms(value)) } else { Limit::soft(ms(value)) }
    }))
}

fn budget() -> impl Strategy<Value = Budget> {
    let counts = (limit(8), limit(4), limit(200), limit(5));
    let times = (time_limit(40), time_limit(8), time_limit(40), time_limit(20), time_limit(150));
    let bytes = (limit(100_000), limit(200_000), limit(100_000));
    (counts, times, bytes).prop_map(|(counts, times, bytes)| {
        type Count = (Option<Limit<u64>>, fn(Budget, Limit<u64>) -> Budget);
        type Time = (Option<Limit<Duration>>, fn(Budget, Limit<Duration>) -> Budget);
        let counts: [Count; 7] = [
            (counts.0, Budget::queries),
            (counts.1, Budget::repeated_queries),
            (counts.2, Budget::rows),
            (counts.3, Budget::external_calls),
            (bytes.0, Budget::memory),
            (bytes.1, Budget::allocated),
            (bytes.2, Budget::retained),
        ];
        let times: [Time; 5] = [
            (times.0, Budget::query_time),
            (times.1, Budget::slow_query),
            (times.2, Budget::external_time),
            (times.3, Budget::external_timeout),
            (times.4, Budget::total_time),
        ];
        let budget = Budget::new().poll_time(ms(5)).slow_request(ms(60));
        let budget = counts.into_iter().fold(budget, |budget, (limit, set)| match limit {
            Some(limit) => set(budget, limit),
            None => budget,
        });
        times.into_iter().fold(budget, |budget, (limit, set)| match limit {
            Some(limit) => set(budget, limit),
            None => budget,
        })
    })
}

async fn run(program: Arc<[Step]>) -> Result<(), Cut> {
    let mut kept = Vec::with_capacity(program.len());
    let ignores = program.iter().any(|step| matches!(step, Step::Ignore));
    for step in &*program {
        let done = match *step {
            Step::Query(n, time, rows) => {
                Query::start(["a", "b", "c"][usize::from(n)]).map(|mut q| {
                    pass(ms(time));
                    q.add_rows(rows);
                })
            }
            Step::Call(n, time) => {
                let system = ["payments", "mail"][usize::from(n)];
                tokio::time::sleep(ms(time)).external(system).await
            }
            Step::Compute(time) => {
                pass(ms(time));
                Ok(())
            }
            Step::Sleep(time) => {
                tokio::time::sleep(ms(time)).await;
                Ok(())
            }
            Step::Yield => {
                tokio::task::yield_now().await;
                Ok(())
            }
            Step::Keep(bytes) => {
                kept.push(black_box(Vec::<u8>::with_capacity(bytes)));
                Ok(())
            }
            Step::Leak(bytes) => {
                black_box(Vec::<u8>::with_capacity(bytes)).leak();
                Ok(())
            }
            Step::Use(bytes) => {
                drop(black_box(Vec::<u8>::with_capacity(bytes)));
                Ok(())
            }
            Step::Ignore => Ok(()),
        };
        if !ignores {
            done?;
        }
    }
    Ok(())
}

/// What came of it: how it ended, all that it used, and each violation.
type Account = (Outcome, Usage, Vec<Violation>);

fn account(ledger: &Ledger) -> Account {
    let mut end = ledger.end();
    // Only a response has one.
    end.usage.response_bytes = 0;
    (end.outcome, end.usage, ledger.violations())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn as_request(program: &Arc<[Step]>, budget: &Budget) -> Account {
    let ledger = Ledger::default();
    runtime().block_on(async {
        let service = service_fn(|_: Request<()>| {
            let work = run(Arc::clone(program));
            async { work.await.map(|()| Response::new(Empty::<Bytes>::new())) }
        });
        let layer = BudgetLayer::new(budget.clone()).with_names(|_: &Request<()>| "work");
        let service = layer.with_reporter(ledger.clone()).layer(service);
        if let Ok(answer) = service.oneshot(Request::new(())).await {
            answer.into_body().collect().await.unwrap();
        }
    });
    account(&ledger)
}

fn as_task(program: &Arc<[Step]>, budget: &Budget) -> Account {
    let ledger = Ledger::default();
    runtime().block_on(async {
        let work = run(Arc::clone(program)).try_budgeted("work", budget.clone());
        drop(work.with_reporter(ledger.clone()).await);
    });
    account(&ledger)
}

fn as_job(program: &Arc<[Step]>, budget: &Budget) -> Account {
    let ledger = Ledger::default();
    runtime().block_on(async {
        let layer = TaskBudgetLayer::new("work", budget.clone()).with_reporter(ledger.clone());
        let service = service_fn(|()| run(Arc::clone(program)));
        drop(layer.layer(service).oneshot(()).await);
    });
    account(&ledger)
}

fn as_closure(program: &Arc<[Step]>, budget: &Budget) -> Account {
    let ledger = Ledger::default();
    runtime().block_on(async {
        let work = Blocking::new("work", budget.clone()).with_reporter(ledger.clone());
        let run = || run(Arc::clone(program)).now_or_never().expect("it does not wait");
        drop(work.run(run).map(|_| ()));
    });
    let (outcome, usage, violations) = account(&ledger);
    // A closure may return anything; what that means is not known here.
    let outcome = if outcome == Outcome::Ok { Outcome::Error } else { outcome };
    (outcome, usage, violations)
}

fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&strategy, test) {
        panic!("{failure}");
    }
}

#[test]
fn the_same_code_that_does_not_wait_gives_the_same_account_as_a_closure() {
    let waits = |step: &Step| matches!(step, Step::Call(..) | Step::Sleep(_) | Step::Yield);
    let work = (vec(step(), 0..25), budget());
    check(500, work, |(program, budget)| {
        let program = program.into_iter().filter(|step| !waits(step)).collect();
        let (outcome, usage, violations) = as_request(&program, &budget);
        let outcome = if outcome == Outcome::Ok { Outcome::Error } else { outcome };
        prop_assert_eq!((outcome, usage, violations), as_closure(&program, &budget));
        Ok(())
    });
}

#[test]
fn the_same_code_as_a_request_and_as_a_job_gives_the_same_account() {
    let work = (vec(step(), 0..25), budget());
    let seen = RefCell::new((HashSet::new(), HashSet::new()));
    check(1_500, work, |(program, budget)| {
        let program = program.into();
        let request = as_request(&program, &budget);
        let mut so_far = seen.borrow_mut();
        so_far.0.insert(request.0);
        so_far.1.extend(request.2.iter().map(|violation| (violation.resource, violation.severity)));
        prop_assert_eq!(&request, &as_task(&program, &budget));
        prop_assert_eq!(&request, &as_job(&program, &budget));
        Ok(())
    });
    // Else equality would say little.
    let (outcomes, violations) = seen.into_inner();
    assert_eq!(outcomes, HashSet::from([Outcome::Ok, Outcome::Error, Outcome::Cut]));
    assert_eq!(violations.len(), 12 * 2 + 2, "{violations:?}");
}
