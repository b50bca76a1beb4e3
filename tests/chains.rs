//! Work that begins work: what is over is let go of, what goes on is charged, however long the
//! chain is.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use request_budget::alloc::CountingAllocator;
use request_budget::db::Query;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetExt, Usage, Violation, task};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// Without optimisation so many would take half a minute.
const GENERATIONS: u64 = if cfg!(debug_assertions) { 4_000 } else { 100_000 };

/// Who begins the next generation, and when its own ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// It has ended when the next one begins.
    EndsFirst,
    /// It goes on while the next one begins.
    GoesOn,
    /// As that, and each has a unit of work around it that is carried as a whole.
    Nested,
}

/// Counts the accounts that are alive: each holds its reporter.
#[derive(Debug, Clone)]
struct Witness(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    most_alive: AtomicUsize,
    most_queries: AtomicU64,
    ends: AtomicU64,
}

impl Reporter for Witness {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.ends.fetch_add(1, Relaxed);
        self.0.most_queries.fetch_max(report.usage().queries, Relaxed);
    }
}

#[expect(clippy::only_used_in_recursion, reason = "the last one to drop it ends the test")]
fn job(left: u64, order: Order, seen: Arc<Seen>, done: mpsc::Sender<()>) -> BoxFuture<'static, ()> {
    async move {
        drop(Query::start("SELECT 1").unwrap());
        seen.most_alive.fetch_max(Arc::strong_count(&seen), Relaxed);
        if left > 0 {
            let next = job(left - 1, order, Arc::clone(&seen), done);
            let next = next.budgeted("job", Budget::new()).with_reporter(Witness(seen));
            match order {
                Order::Nested => drop(task::spawn(
                    async { next.await.unwrap() }.budgeted("around", Budget::new()),
                )),
                _ => drop(task::spawn(next)),
            }
            if order != Order::EndsFirst {
                tokio::task::yield_now().await;
            }
        }
    }
    .boxed()
}

/// How much memory the process has, the accounts included, which are no memory of any work.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or(0, |line| line.trim_end_matches("kB").trim().parse().unwrap())
}

#[tokio::test]
async fn a_job_that_begins_the_next_one_is_let_go_of() {
    for order in [Order::EndsFirst, Order::GoesOn, Order::Nested] {
        let seen = Arc::new(Seen::default());
        let all = async {
            let (done, mut end) = mpsc::channel(1);
            let first = job(GENERATIONS, order, Arc::clone(&seen), done);
            let first =
                first.budgeted("job", Budget::new()).with_reporter(Witness(Arc::clone(&seen)));
            drop(task::spawn(first));
            // All of them have let go of it.
            assert_eq!(end.recv().await, None);
            Usage::current().unwrap()
        };
        let before = resident_kib();
        let usage = all.budgeted("all", Budget::new()).await.unwrap();
        // What is left of the first ones would be seen: of 4,000 as 6 MiB, of 100,000 as 160.
        let grown = resident_kib().saturating_sub(before);
        assert!(grown < 4 << 10, "{order:?}: {grown} KiB more after all generations");
        // What lives on is charged with all that was begun in it, directly or not.
        assert_eq!(usage.queries, GENERATIONS + 1, "{order:?}");
        let [alive, queries] =
            [seen.most_alive.load(Relaxed) as u64, seen.most_queries.load(Relaxed)];
        // tokio polls a task that yields again after 61 others: so many generations do go on side
        // by side.
        let most = if order == Order::EndsFirst { 8 } else { 256 };
        assert!(alive <= most, "{order:?}: {alive} accounts and futures at a time");
        assert!(queries <= most, "{order:?}: {queries} queries of one generation");
        tokio::task::yield_now().await;
        assert!(seen.ends.load(Relaxed) >= GENERATIONS);
    }
}

#[derive(Debug, Clone, Default)]
struct Ends(Arc<Mutex<Vec<(Outcome, u64)>>>);

impl Reporter for Ends {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.lock().unwrap().push((report.outcome(), report.usage().queries));
    }
}

#[test]
fn what_is_carried_after_the_end_is_charged_to_what_goes_on() {
    let (ends, child) = (Ends::default(), Mutex::new(None));
    let outer = async {
        let inner = async {
            let goes_on = async { drop(Query::start("SELECT 1").unwrap()) };
            // Nested in work that has ended by the time it runs.
            let goes_on = goes_on.budgeted("goes on", Budget::new()).in_current_budget();
            *child.lock().unwrap() = Some(goes_on.boxed());
        };
        inner.budgeted("inner", Budget::new()).with_reporter(ends.clone()).await.unwrap();
        let mut goes_on = child.lock().unwrap().take().unwrap();
        poll_fn(|cx| goes_on.as_mut().poll(cx)).await.unwrap();
        Usage::current().unwrap().queries
    };
    let mut work = pin!(outer.budgeted("outer", Budget::new()));
    let Poll::Ready(queries) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits for nothing")
    };
    assert_eq!(queries, Ok(1));
    // The report of the inner work was over.
    assert_eq!(*ends.0.lock().unwrap(), [(Outcome::Ok, 0)]);
}
