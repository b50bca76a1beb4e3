//! What is promised, in the configuration of production: default features and `sqlx`, without
//! `testing` and `witness`, optimised.

mod events;
mod http;
mod memory;
mod sqlite;
mod task;

use std::sync::{Arc, Mutex, MutexGuard};

use request_budget::alloc::CountingAllocator;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Usage, Violation};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Executor, Sqlite};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// The end of a unit of work: its name, how it ended, what it used.
type End = (String, Outcome, Usage);

/// Keeps what a reporter gets.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    violations: Vec<String>,
    ends: Vec<End>,
}

impl Ledger {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics under this lock")
    }

    fn violations(&self) -> Vec<String> {
        self.kept().violations.clone()
    }

    /// The only end so far: each unit of work is reported once.
    #[track_caller]
    fn end(&self) -> End {
        let ends = self.kept().ends.clone();
        let [end] = <[End; 1]>::try_from(ends).expect("one end");
        end
    }
}

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        self.kept().violations.push(violation.to_string());
    }

    fn finished(&self, report: &Report<'_>) {
        self.kept().ends.push((report.work().to_string(), report.outcome(), report.usage()));
    }
}

/// A pool of one connection, with a table of as many rows.
async fn pool(rows: u32) -> Pool<Sqlite> {
    let plain = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:");
    let plain = plain.await.expect("it needs no server");
    plain.execute("CREATE TABLE items (id INTEGER PRIMARY KEY)").await.expect("creates");
    for _ in 0..rows {
        plain.execute("INSERT INTO items DEFAULT VALUES").await.expect("inserts");
    }
    Pool::from(plain)
}
