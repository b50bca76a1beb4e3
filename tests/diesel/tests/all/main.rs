//! Diesel and diesel-async, counted: what only their own connections can show.
//!
//! PostgreSQL is named by a variable. Without it the tests that need it are shown as ignored.

mod kept;
mod postgres;
mod program;
mod sqlite;
mod wrapper;

use std::env;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::{self, Runtime};

#[global_allocator]
static ALLOC: request_budget::alloc::CountingAllocator =
    request_budget::alloc::CountingAllocator::system();

fn main() {
    let arguments = Arguments::from_args();
    request_budget::diesel::instrument_with(kept::note);
    // Harmless, and keeps what was given to the other.
    request_budget::diesel::instrument();
    let mut trials = Vec::new();
    for (name, test) in [kept::TESTS, sqlite::TESTS, wrapper::TESTS].concat() {
        trials.push(Trial::test(name, move || {
            test();
            Ok(())
        }));
    }
    let url = env::var("REQUEST_BUDGET_POSTGRES_URL").ok();
    if url.is_none() {
        let n = postgres::TESTS.len();
        eprintln!("skipped: {n} tests, because REQUEST_BUDGET_POSTGRES_URL is not set");
    }
    for (name, test) in postgres::TESTS {
        let (url, is_missing) = (url.clone(), url.is_none());
        let run = move || match url {
            Some(url) => {
                test(&url);
                Ok(())
            }
            None => Err(Failed::from("REQUEST_BUDGET_POSTGRES_URL is not set")),
        };
        trials.push(Trial::test(*name, run).with_ignored_flag(is_missing));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test that needs no server.
type Test = (&'static str, fn());

/// One that is told where its server is.
type ServerTest = (&'static str, fn(&str));

/// A runtime with as many worker threads, or on the calling thread with none.
fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers.max(1)).enable_all().build().expect("a runtime can be made")
}
