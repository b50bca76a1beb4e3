//! A limit on memory in a process that does not count it. One test only: it is said once a process.

mod health;

use std::sync::{Arc, Mutex};

use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetExt, Limit, Usage, Violation};
use tracing::Level;

/// Keeps what was measured of every work.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<[Option<u64>; 3]>>>);

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        panic!("nothing can be crossed: {violation}");
    }

    fn finished(&self, report: &Report<'_>) {
        self.0.lock().expect("no other report panicked").push(measured(&report.usage()));
    }
}

fn measured(usage: &Usage) -> [Option<u64>; 3] {
    [usage.memory, usage.allocated, usage.retained]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_memory_limit_without_the_allocator_is_said_once_and_never_crossed() {
    let health = health::listen();
    let look = async {
        let hog = std::hint::black_box(vec![1_u8; 1 << 20]);
        let usage = Usage::current().expect("it runs in a unit of work");
        drop(hog);
        measured(&usage)
    };
    assert_eq!(look.budgeted("free", Budget::new()).await, Ok([None; 3]));
    assert_eq!(health.heard(), [], "who limits nothing is told nothing");

    let ledger = Ledger::default();
    let budget = Budget::new().memory(Limit::soft(1).and_hard(2)).retained(0).external_calls(9);
    let works = (0..100).map(|_| {
        let hog = async {
            drop(std::hint::black_box(vec![1_u8; 1 << 20]));
        };
        tokio::spawn(hog.budgeted("hog", budget.clone()).with_reporter(ledger.clone()))
    });
    for work in works.collect::<Vec<_>>() {
        assert_eq!(work.await.expect("it does not panic"), Ok(()));
    }
    assert_eq!(*ledger.0.lock().expect("no report panicked"), [[None; 3]; 100]);
    let said = "a budget limits memory, retained, but the counting allocator is not installed in \
                this process: these limits can never be crossed, whatever the work uses";
    assert_eq!(health.heard(), [(Level::WARN, "memory, retained".to_owned(), said.to_owned())]);

    // Once a process, also for a limit that was not named then.
    async {}.budgeted("other", Budget::new().allocated(1)).await.expect("nothing is crossed");
    assert_eq!(health.heard().len(), 1);
}
