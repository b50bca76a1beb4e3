//! What can only be tried against real servers; `tests/run` starts them.
//!
//! A server is named by a variable. Without it the tests that need it are shown as ignored, and why is
//! said at the top.

#![expect(clippy::arithmetic_side_effects, reason = "in a test an overflow may panic")]

mod aggregate;
mod bypass;
mod clean;
mod cut;
mod jobs;
mod mariadb;
mod mongo;
mod mongo_cut;
mod mongo_session;
mod observed;
mod postgres;
mod redis;
mod retained;
mod rows;
mod sql;
mod testing;

use std::env;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::{self, Runtime};
use tracing::Dispatch;

#[global_allocator]
static ALLOC: request_budget::alloc::CountingAllocator =
    request_budget::alloc::CountingAllocator::system();

fn main() {
    let arguments = Arguments::from_args();
    // While a process has a single subscriber, `tracing` asks the default one of the thread that comes to an
    // event first, and caches the answer for all threads: a test with a subscriber of its own would see
    // nothing where another test comes first. With two subscribers it asks both.
    let _second = Dispatch::new(tracing_subscriber::registry());
    let mut suite = Suite::default();
    postgres::tests(&mut suite);
    mariadb::tests(&mut suite);
    mongo::tests(&mut suite);
    mongo_cut::tests(&mut suite);
    mongo_session::tests(&mut suite);
    aggregate::tests(&mut suite);
    bypass::tests(&mut suite);
    clean::tests(&mut suite);
    cut::tests(&mut suite);
    jobs::tests(&mut suite);
    observed::tests(&mut suite);
    redis::tests(&mut suite);
    retained::tests(&mut suite);
    rows::tests(&mut suite);
    testing::tests(&mut suite);
    libtest_mimic::run(&arguments, suite.trials).exit();
}

/// A test that is told where its server is.
type Test = fn(&str);

#[derive(Default)]
struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    /// The tests that need none, beside those on servers that they are alike.
    fn without_server(&mut self, tests: &[(&str, fn())]) {
        for &(name, test) in tests {
            self.trials.push(Trial::test(name, move || {
                test();
                Ok(())
            }));
        }
    }

    /// The tests that need the server which this variable names.
    fn with_server(&mut self, variable: &'static str, tests: &[(&str, Test)]) {
        let url = env::var(variable).ok();
        if url.is_none() {
            eprintln!("skipped: {} tests, because {variable} is not set", tests.len());
        }
        for &(name, test) in tests {
            let (url, is_missing) = (url.clone(), url.is_none());
            let run = move || match url {
                Some(url) => {
                    test(&url);
                    Ok(())
                }
                None => Err(Failed::from(format!("{variable} is not set"))),
            };
            self.trials.push(Trial::test(name, run).with_ignored_flag(is_missing));
        }
    }
}

/// A runtime with as many worker threads, or on the calling thread with none.
fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers.max(1)).enable_all().build().expect("a runtime can be made")
}

fn with_runtime<F: Future>(workers: usize, test: F) -> F::Output {
    runtime(workers).block_on(test)
}
