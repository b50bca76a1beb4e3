//! Synchronous work.

use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use request_budget::report::{Attributes, Outcome};
use request_budget::task::{self, Blocking};
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage};

use crate::support::{Ledger, call, ms, pass, query};

#[tokio::test(start_paused = true)]
async fn a_closure_is_a_unit_of_work() {
    let ledger = Ledger::default();
    let output = Blocking::new("import", Budget::new().queries(1))
        .with_attributes(Attributes::new().with("file", "a.csv"))
        .with_reporter(ledger.clone())
        .run(|| {
            query("SELECT 1").unwrap();
            query("SELECT 1").unwrap();
            call().unwrap();
            pass(ms(30));
            "imported"
        });
    assert_eq!(output, Ok("imported"));
    let end = ledger.end();
    assert_eq!((end.outcome, end.usage.queries, end.usage.external_calls), (Outcome::Ok, 2, 1));
    assert_eq!(end.usage.total_time, ms(30));
    assert_eq!(ledger.messages(), ["import (file=a.csv): 2 queries, limit 1: `SELECT 1`, 2 times"]);
    assert_eq!(Usage::current(), None);
}

#[test]
fn a_thread_needs_no_runtime() {
    let ledger = Ledger::default();
    let import = Blocking::new("import", Budget::new().memory(1_000)).with_reporter(ledger.clone());
    let work = || drop(black_box(Vec::<u8>::with_capacity(3_000)));
    std::thread::spawn(move || import.run(work)).join().unwrap().unwrap();
    assert_eq!(ledger.end().usage.memory, Some(3_000));
    let expected =
        "import: 2.9 KiB of memory at peak, limit 1000 B: own code, up to 2.9 KiB in one poll";
    assert_eq!(ledger.messages(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_too_late_is_reported_and_stands() {
    let ledger = Ledger::default();
    let budget = Budget::new().total_time(ms(10));
    let done = Blocking::new("hash", budget).with_reporter(ledger.clone()).run(|| {
        pass(ms(25));
        "hash"
    });
    assert_eq!(done, Ok("hash"));
    assert_eq!(ledger.messages(), ["hash: 25ms in total, limit 10ms: own code"]);
    assert_eq!(ledger.end().outcome, Outcome::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_ends_it_when_the_time_is_up() {
    let ledger = Ledger::default();
    let mut pieces = 0;
    let cut = Blocking::new("index", Budget::new().total_time(ms(10)))
        .with_reporter(ledger.clone())
        .run(|| {
            while task::checkpoint().is_ok() {
                pieces += 1;
                pass(ms(4));
            }
            assert!(query("SELECT 1").is_err(), "it is over");
        })
        .unwrap_err();
    assert_eq!((pieces, cut.violation().resource), (3, Resource::TotalTime));
    assert_eq!(ledger.end().outcome, Outcome::Cut);
    assert_eq!(ledger.messages(), ["index: 12ms in total, limit 10ms: own code"]);
}

#[test]
fn a_checkpoint_ends_it_when_it_has_too_much_memory() {
    let budget = Budget::new().memory(Limit::hard(10_000));
    let mut pages = Vec::with_capacity(100);
    let cut = task::blocking("collect", budget, || -> Result<(), Cut> {
        loop {
            task::checkpoint()?;
            pages.push(black_box(Vec::<u8>::with_capacity(3_000)));
        }
    });
    assert_eq!(cut.map(|_| ()).unwrap_err().violation().resource, Resource::Memory);
    assert_eq!(pages.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_ends_a_future_as_well_and_asks_what_is_around_it() {
    let inner = Ledger::default();
    let work = async {
        let inner = Blocking::new("inner", Budget::new()).with_reporter(inner.clone());
        inner.run(|| {
            task::checkpoint().unwrap();
            pass(ms(20));
            task::checkpoint()
        })
    };
    let cut = work.budgeted("outer", Budget::new().total_time(ms(10))).await.unwrap_err();
    assert_eq!(cut.violation().work, "outer");
    // The inner one was not cut: it chose what to return.
    assert_eq!(inner.end().outcome, Outcome::Ok);
    task::checkpoint().expect("no work is running here");
}

#[test]
fn what_was_made_without_what_was_refused_is_dropped_inside() {
    struct Noted(mpsc::Sender<bool>);

    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.send(Usage::current().is_some()).unwrap();
        }
    }

    let (dropped, inside) = mpsc::channel();
    let budget = Budget::new().queries(Limit::hard(0));
    let cut = task::blocking("import", budget, || {
        assert!(query("SELECT 1").is_err());
        Noted(dropped)
    });
    assert_eq!(cut.map(|_| ()).unwrap_err().violation().resource, Resource::Queries);
    assert_eq!(inside.recv(), Ok(true));
}

#[test]
fn a_panic_is_reported_and_goes_on() {
    let ledger = Ledger::default();
    let import = Blocking::new("import", Budget::new()).with_reporter(ledger.clone());
    let run = || import.run(|| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    assert_eq!(Usage::current(), None);
}

#[tokio::test]
async fn inside_a_request_it_is_charged_to_both_if_it_is_carried() {
    let (inner, outer) = (Ledger::default(), Ledger::default());
    let work = async {
        let blocking = Blocking::new("resize", Budget::new()).with_reporter(inner.clone());
        let resize = || blocking.run(|| drop(black_box(Vec::<u8>::with_capacity(700_000))));
        task::spawn_blocking(resize).await.unwrap().unwrap();

        let apart = Blocking::new("apart", Budget::new()).with_reporter(inner.clone());
        let apart = || apart.run(|| drop(black_box(Vec::<u8>::with_capacity(900_000))));
        tokio::task::spawn_blocking(apart).await.unwrap().unwrap();
    };
    work.budgeted("POST /images", Budget::new()).with_reporter(outer.clone()).await.unwrap();
    let [resize, apart] = &inner.ends()[..] else { panic!("two ends") };
    assert_eq!((resize.usage.memory, apart.usage.memory), (Some(700_000), Some(900_000)));
    for end in [resize, apart] {
        assert_eq!(end.begun_by.as_deref(), Some("POST /images"));
    }
    let request = outer.end().usage.memory.unwrap();
    assert!((700_000..800_000).contains(&request), "{request}");
}

#[test]
fn zero_time_is_over_at_the_first_question() {
    let budget = Budget::new().total_time(Duration::ZERO);
    assert!(task::blocking("nothing", budget, task::checkpoint).is_err());
}
