//! What is refused is not refused at once: a loop that tries again meets the cut.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use request_budget::db::Query;
use request_budget::http::ExternalLayer;
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, ExternalExt, Limit, Resource, task};
use tokio::time::Instant;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Ledger, ms};

/// More tries than this in one poll are a loop that never yields.
const MOST: u32 = 1_000;

/// Tries until something succeeds that never does.
async fn retry<E>(tries: &AtomicU32, mut attempt: impl AsyncFnMut() -> Result<(), E>) {
    loop {
        drop(attempt().await);
        assert!(tries.fetch_add(1, Relaxed) < MOST, "{MOST} tries, and nothing has ended them");
    }
}

async fn call() -> Result<(), request_budget::Cut> {
    ready(()).external("payments").await
}

async fn query() -> Result<(), request_budget::Cut> {
    Query::begin("GET user:*").await.map(drop)
}

async fn client() -> Result<(), impl Sized> {
    let client = service_fn(|()| ready(Ok::<_, Infallible>(())));
    ExternalLayer::new("payments").layer(client).oneshot(()).await
}

fn hard() -> Budget {
    Budget::new().queries(Limit::hard(20)).external_calls(Limit::hard(20))
}

/// Polls work that never ends by itself until it is cut, at most so often; gives the number of
/// polls.
fn polls_until_cut<T>(mut work: Pin<&mut impl Future<Output = Result<T, impl Sized>>>) -> u32 {
    for polls in 1..=10 {
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            assert!(result.is_err(), "not cut");
            return polls;
        }
    }
    panic!("not cut in 10 polls")
}

#[test]
fn a_loop_that_tries_again_what_is_refused_is_cut() {
    async fn tries(what: u32, tries: &AtomicU32) {
        match what {
            0 => retry(tries, call).await,
            1 => retry(tries, query).await,
            _ => retry(tries, client).await,
        }
    }

    for what in 0..3 {
        let (ledger, count) = (Ledger::default(), AtomicU32::new(0));
        let work = tries(what, &count).budgeted("job", hard()).with_reporter(ledger.clone());
        assert_eq!(polls_until_cut(pin!(work)), 1);
        assert_eq!(count.into_inner(), 20);
        assert_eq!((ledger.outcomes(), ledger.violations().len()), (vec![Outcome::Cut], 1));
    }
}

#[test]
fn so_is_one_in_nested_work_by_either_limit() {
    for (inner, outer) in [(hard(), Budget::new()), (Budget::new(), hard())] {
        let (ledger, count) = (Ledger::default(), AtomicU32::new(0));
        let nested = retry(&count, call).budgeted("inner", inner);
        let nested = nested.with_reporter(ledger.clone());
        let work = async { drop(nested.await) }.budgeted("outer", outer);
        let work = work.with_reporter(ledger.clone());
        let mut work = pin!(work);
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_ready());
        assert_eq!((count.load(Relaxed), ledger.violations().len()), (20, 1));
    }
}

#[test]
fn many_calls_at_once_that_are_refused_end_with_the_work() {
    let ledger = Ledger::default();
    let work = async {
        let mut calls: FuturesUnordered<_> = (0..500).map(|_| call()).collect();
        let mut ends = 0;
        while let Some(_end) = calls.next().await {
            ends += 1;
        }
        ends
    };
    let work = work.budgeted("job", hard()).with_reporter(ledger.clone());
    assert!(polls_until_cut(pin!(work)) <= 10);
    assert_eq!((ledger.outcomes(), ledger.violations().len()), (vec![Outcome::Cut], 1));
}

#[tokio::test(start_paused = true)]
async fn a_carried_task_that_tries_again_keeps_no_thread_busy_and_the_work_ends() {
    let (ledger, count) = (Ledger::default(), Arc::new(AtomicU32::new(0)));
    let tries = Arc::clone(&count);
    let work = async {
        let child = task::spawn(async move { retry(&tries, call).await });
        child.await.unwrap();
    };
    let work = work.budgeted("job", hard()).with_reporter(ledger.clone());
    let cut = work.await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::ExternalCalls);
    assert_eq!((ledger.outcomes(), ledger.violations().len()), (vec![Outcome::Cut], 1));
    // It was left to itself. A clock that is paused goes on only while no task is ready to run.
    let before = count.load(Relaxed);
    tokio::time::sleep(ms(1_000)).await;
    let tries = count.load(Relaxed) - before;
    assert!((1..=200).contains(&tries), "{tries} tries in a second");
}

async fn never_ends() -> Result<(), request_budget::Cut> {
    pending().external("payments").await
}

async fn never_ready() -> Result<(), impl Sized> {
    let client = service_fn(|()| ready(Ok::<_, Infallible>(())));
    ExternalLayer::new("payments").layer(ConcurrencyLimit::new(client, 0)).oneshot(()).await
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_tries_again_what_is_cut_is_cut_when_no_time_is_left() {
    let budget = || Budget::new().external_timeout(ms(10)).total_time(ms(25));
    for is_ready in [true, false] {
        let (count, started) = (AtomicU32::new(0), Instant::now());
        let attempts = async {
            match is_ready {
                true => retry(&count, never_ends).await,
                false => retry(&count, never_ready).await,
            }
        };
        let cut = attempts.budgeted("job", budget()).await.unwrap_err();
        assert_eq!(cut.violation().resource, Resource::TotalTime);
        assert_eq!((count.load(Relaxed), started.elapsed()), (3, ms(25)));
    }
    // A carried task goes on when the work is over, and keeps no thread busy.
    let count = Arc::new(AtomicU32::new(0));
    let tries = Arc::clone(&count);
    let work = async {
        let child = task::spawn(async move { retry(&tries, never_ends).await });
        child.await.unwrap();
    };
    work.budgeted("job", budget()).await.unwrap_err();
    let before = count.load(Relaxed);
    tokio::time::sleep(ms(1_000)).await;
    let tries = count.load(Relaxed) - before;
    assert!((1..=200).contains(&tries), "{tries} tries in a second");
}

#[tokio::test(start_paused = true)]
async fn its_own_time_ends_nested_work_that_the_outer_one_is_cut_for() {
    let (ledger, count) = (Ledger::default(), Arc::new(AtomicU32::new(0)));
    let tries = Arc::clone(&count);
    let inner = async move { retry(&tries, call).await };
    let inner = inner.budgeted("inner", Budget::new().total_time(ms(300)));
    let inner = inner.with_reporter(ledger.clone());
    let work = async { task::spawn(inner).await.unwrap().unwrap() };
    let cut = work.budgeted("outer", hard()).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::ExternalCalls);
    tokio::time::sleep(ms(1_000)).await;
    let end = ledger.end();
    assert_eq!((end.outcome, ledger.violations().len()), (Outcome::Cut, 1));
    assert!(end.usage.total_time < ms(320), "{:?}", end.usage.total_time);
}

/// On a runtime without timers nothing would wake it later.
#[test]
fn a_carried_task_yields_without_timers_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let count = Arc::new(AtomicU32::new(0));
        let tries = Arc::clone(&count);
        let work = async { task::spawn(async move { retry(&tries, call).await }).await.unwrap() };
        work.budgeted("job", hard()).await.unwrap_err();
        let before = count.load(Relaxed);
        while count.load(Relaxed) < before + 100 {
            tokio::task::yield_now().await;
        }
    });
}
