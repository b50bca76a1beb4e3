//! Accounts are used again: whatever ran before on a thread, work is reported as if its account
//! were new.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

use std::cell::RefCell;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use proptest::collection::vec;
use proptest::prelude::*;
use request_budget::alloc::CountingAllocator;
use request_budget::db::{self, Query};
use request_budget::report::{Attributes, Report, Reporter, Tally};
use request_budget::scope::InCurrentBudget;
use request_budget::{Budget, BudgetExt, ExternalExt, Limit, Usage, Violation};
use tokio::time::advance;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// A unit of work, what it does, and how it ends.
#[derive(Debug, Clone)]
struct Work {
    name: u8,
    attributes: Option<u8>,
    budget: u8,
    does: Vec<Op>,
    ends: End,
}

#[derive(Debug, Clone)]
enum Op {
    Query {
        statement: u8,
        rows: u64,
        millis: u64,
    },
    /// A statement that is counted after the fact.
    Executed {
        statement: u8,
        millis: u64,
    },
    Call {
        name: u8,
        millis: u64,
    },
    /// Memory that is held until the work ends, or left to whoever reads the log.
    Allocate {
        bytes: usize,
        is_left: bool,
    },
    Wait {
        millis: u64,
    },
    Nested(Work),
    /// Charged to the work that is running, polled by it.
    Carried(Vec<Self>),
    Look,
}

#[derive(Debug, Clone, Copy)]
enum End {
    ByItself,
    ByAPanic,
    /// Dropped where it waits first, if it does.
    Dropped,
}

fn operation() -> impl Strategy<Value = Op> {
    let leaf = prop_oneof![
        4 => (0..12_u8, 0..4_u64, 0..20_u64)
            .prop_map(|(statement, rows, millis)| Op::Query { statement, rows, millis }),
        1 => (0..12_u8, 0..20_u64).prop_map(|(statement, millis)| Op::Executed { statement, millis }),
        1 => (0..3_u8, 0..20_u64).prop_map(|(name, millis)| Op::Call { name, millis }),
        2 => (1..20_000_usize, any::<bool>())
            .prop_map(|(bytes, is_left)| Op::Allocate { bytes, is_left }),
        2 => (0..60_u64).prop_map(|millis| Op::Wait { millis }),
        1 => Just(Op::Look),
    ];
    leaf.prop_recursive(3, 40, 8, |inner| {
        prop_oneof![
            2 => work(vec(inner.clone(), 0..8)).prop_map(Op::Nested),
            1 => vec(inner, 0..8).prop_map(Op::Carried),
        ]
    })
}

fn work(does: impl Strategy<Value = Vec<Op>>) -> impl Strategy<Value = Work> {
    let ends =
        prop_oneof![4 => Just(End::ByItself), 1 => Just(End::ByAPanic), 1 => Just(End::Dropped)];
    (0..3_u8, any::<Option<u8>>(), 0..6_u8, does, ends).prop_map(
        |(name, attributes, budget, does, ends)| Work { name, attributes, budget, does, ends },
    )
}

fn any_work() -> impl Strategy<Value = Work> {
    work(vec(operation(), 0..12))
}

fn budget(number: u8) -> Budget {
    let millis = Duration::from_millis;
    match number {
        0 => Budget::new(),
        1 => Budget::new().queries(3).repeated_queries(1).rows(4).external_calls(1).writes(1),
        2 => Budget::new().queries(Limit::soft(2).and_hard(6)).allocated(30_000),
        3 => Budget::new().total_time(millis(90)).query_time(millis(20)).slow_query(millis(15)),
        4 => Budget::new().repeated_queries(Limit::hard(2)).allocated(Limit::hard(90_000)),
        _ => Budget::new()
            .poll_time(millis(10))
            .external_timeout(millis(10))
            .slow_request(millis(30)),
    }
}

fn statement(number: u8) -> String {
    match number % 3 {
        0 => format!("SELECT {number}"),
        1 => format!("UPDATE posts SET likes = {number}"),
        _ => format!("SELECT '{}'", "x".repeat(usize::from(number) * 300)),
    }
}

/// All that is reported, in words.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Reported>>);

#[derive(Debug, Default, PartialEq)]
struct Reported {
    all: Vec<String>,
    /// Apart, since an account that stays known holds memory of the work: its name, its reporter.
    memory: Vec<[Option<u64>; 2]>,
}

impl Log {
    fn note(&self, what: &dyn Debug) {
        self.0.lock().unwrap().all.push(format!("{what:?}"));
    }

    fn note_usage(&self, mut usage: Usage) {
        let memory = [usage.memory.take(), usage.retained.take()];
        self.0.lock().unwrap().memory.push(memory);
        self.note(&usage);
    }
}

impl Reporter for Log {
    fn violation(&self, violation: &Violation) {
        self.note(violation);
    }

    fn finished(&self, report: &Report<'_>) {
        fn sorted<'a>(tallies: impl Iterator<Item = Tally<'a>>) -> Vec<(&'a str, u64, Duration)> {
            let mut all: Vec<_> =
                tallies.map(|tally| (tally.text, tally.times, tally.time)).collect();
            all.sort_unstable();
            all
        }
        self.note(&(report.work(), report.attributes(), report.begun_by(), report.outcome()));
        self.note_usage(report.usage());
        self.note(&(report.violations(), report.statements_left_out()));
        self.note(&(sorted(report.statements()), sorted(report.external_calls())));
    }
}

thread_local! {
    /// Handles of accounts: what is known here is not used again.
    static HANDLES: RefCell<Vec<InCurrentBudget<Ready<()>>>> = RefCell::new(Vec::with_capacity(4_096));
}

/// What becomes of a handle of each account.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Handles {
    /// It is kept, so each account is a new one.
    Kept,
    /// It is dropped while the work runs.
    Dropped,
    /// There is none.
    Absent,
}

/// Runs some operations.
fn run<'a>(does: &'a [Op], log: &'a Log, handles: Handles) -> LocalBoxFuture<'a, ()> {
    async move {
        let mut held = Vec::new();
        for op in does {
            match op {
                Op::Query { statement: number, rows, millis } => {
                    if let Ok(mut query) = Query::begin(&statement(*number)).await {
                        advance(Duration::from_millis(*millis)).await;
                        query.add_rows(*rows);
                    }
                }
                Op::Executed { statement: number, millis } => {
                    db::executed(&statement(*number), Duration::from_millis(*millis), 1);
                }
                Op::Call { name, millis } => {
                    let call = advance(Duration::from_millis(*millis));
                    drop(call.external(format!("system {name}")).await);
                }
                Op::Allocate { bytes, is_left } => {
                    let memory = black_box(vec![1_u8; *bytes]);
                    if *is_left { drop(memory.leak().iter()) } else { held.push(memory) }
                }
                Op::Wait { millis } => {
                    advance(Duration::from_millis(*millis)).await;
                    tokio::task::yield_now().await;
                }
                Op::Nested(work) => begin(work, log, handles).await,
                Op::Carried(does) => run(does, log, handles).in_current_budget().await,
                Op::Look => Usage::current().into_iter().for_each(|usage| log.note_usage(usage)),
            }
        }
    }
    .boxed_local()
}

/// Runs a unit of work.
fn begin<'a>(work: &'a Work, log: &'a Log, handles: Handles) -> LocalBoxFuture<'a, ()> {
    async move {
        let body = async move {
            if handles != Handles::Absent {
                let handle = ready(()).in_current_budget();
                if handles == Handles::Kept {
                    HANDLES.with_borrow_mut(|all| all.push(handle));
                }
            }
            run(&work.does, log, handles).await;
            if matches!(work.ends, End::ByAPanic) {
                resume_unwind(Box::new(()));
            }
        };
        let attributes = work.attributes.map(|value| Attributes::new().with("run", value));
        let name = ["first", "second", "third"][usize::from(work.name)];
        let body = body
            .budgeted(format!("the {name}"), budget(work.budget))
            .with_attributes(attributes.unwrap_or_default())
            .with_reporter(log.clone());
        let body = AssertUnwindSafe(body).catch_unwind();
        match work.ends {
            End::Dropped => drop(body.now_or_never()),
            _ => log.note(&body.await.map(|output| output.map_err(|cut| cut.to_string())).is_ok()),
        }
    }
    .boxed_local()
}

/// Runs units of work on a paused clock, one after the other; what is reported of the last one.
fn report(works: &[&Work], handles: Handles) -> Reported {
    let mut last = Reported::default();
    for work in works {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let log = Log::default();
        runtime.block_on(begin(work, &log, handles));
        last = std::mem::take(&mut *log.0.lock().unwrap());
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn work_is_reported_as_if_its_account_were_new(
        before in vec(any_work(), 1..5),
        work in any_work(),
    ) {
        let works: Vec<&Work> = before.iter().chain([&work]).collect();
        // On a thread of its own each, so that nothing is there to be used again. What ran before
        // runs before both: what a thread allocates only once is not compared then.
        let [new, shared, own] = [Handles::Kept, Handles::Dropped, Handles::Absent].map(|handles| {
            thread::scope(|scope| scope.spawn(|| report(&works, handles)).join().unwrap())
        });
        prop_assert_eq!(&new.all, &shared.all);
        prop_assert_eq!(&shared, &own);
    }
}
