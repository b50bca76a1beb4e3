//! An instrumentation of the program's own beside ours.

use std::cell::Cell;
use std::time::Duration;

use diesel::connection::{Instrumentation, InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use request_budget::db::executed;
use request_budget::{Budget, Usage, diesel as budget, task};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("the_default_of_the_program_is_kept", default_is_kept),
    ("a_statement_that_a_callback_reports_as_well_counts_once", counts_once),
    ("another_instrumentation_of_a_connection_can_be_reached", is_reached),
    ("a_connection_without_ours_is_not_counted", is_replaced),
];

thread_local! {
    static EVENTS: Cell<u64> = const { Cell::new(0) };
}

/// The default instrumentation of this program.
pub(crate) fn note() -> Option<Box<dyn Instrumentation>> {
    Some(Box::new(|_: InstrumentationEvent<'_>| EVENTS.set(EVENTS.get() + 1)))
}

fn usage_of(work: impl FnOnce()) -> Usage {
    let work = || {
        work();
        Usage::current().expect("inside")
    };
    task::blocking("work", Budget::new(), work).expect("no limit")
}

fn open() -> SqliteConnection {
    SqliteConnection::establish(":memory:").expect("opens")
}

fn default_is_kept() {
    let before = EVENTS.get();
    let mut connection = open();
    let established = EVENTS.get() - before;
    assert_eq!(established, 2);
    let usage = usage_of(|| connection.batch_execute("SELECT 1").expect("executes"));
    assert_eq!((usage.queries, EVENTS.get() - before), (1, established + 2));
}

fn counts_once() {
    let report = |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::FinishQuery { query, .. } = event {
            executed(&query.to_string(), Duration::from_secs(60), 3);
        }
    };
    let mut connection = open();
    connection.set_instrumentation(budget::Instrumentation::with(report));
    let usage = usage_of(|| {
        for _ in 0..3 {
            connection.batch_execute("SELECT 1").expect("executes");
        }
        executed("SELECT 2", Duration::ZERO, 0);
    });
    assert_eq!((usage.queries, usage.observed, usage.repeated_queries), (4, 4, 3));
    // The time is that of the one that has counted it.
    assert!(usage.query_time < Duration::from_secs(60), "{usage:?}");
}

#[derive(Default)]
struct Begun(u64);

impl Instrumentation for Begun {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        self.0 += u64::from(matches!(event, InstrumentationEvent::StartQuery { .. }));
    }
}

fn is_reached() {
    let mut connection = open();
    connection.set_instrumentation(budget::Instrumentation::with(Begun::default()));
    connection.batch_execute("SELECT 1").expect("executes");
    let ours = connection.instrumentation().downcast_mut::<budget::Instrumentation>();
    let theirs = ours.expect("ours").get_mut().and_then(|theirs| theirs.downcast_mut::<Begun>());
    assert_eq!(theirs.expect("theirs").0, 1);
}

fn is_replaced() {
    let mut connection = open();
    connection.set_instrumentation(Begun::default());
    let usage = usage_of(|| connection.batch_execute("SELECT 1").expect("executes"));
    assert_eq!(usage.queries, 0);
}
