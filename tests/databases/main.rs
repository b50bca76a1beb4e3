//! What can only be tried against real servers; `tests/run` starts them.
//!
//! A server is named by a variable. Without it the tests that need it are shown as ignored, and why
//! is said at the top.

#![expect(clippy::arithmetic_side_effects, reason = "in a test an overflow may panic")]

mod aggregate;
mod alone;
mod bypass;
mod clean;
mod cut;
mod jobs;
mod logging;
mod mariadb;
mod mongo;
mod mongo_cut;
mod mongo_retry;
mod mongo_session;
mod observed;
mod postgres;
mod redis;
mod retained;
mod rows;
mod session;
mod sql;
mod steps;
mod suite;
mod testing;

use libtest_mimic::Arguments;
use tracing::Dispatch;

use crate::suite::{Suite, runtime, with_runtime};

#[global_allocator]
static ALLOC: request_budget::alloc::CountingAllocator =
    request_budget::alloc::CountingAllocator::system();

fn main() {
    let arguments = Arguments::from_args();
    // While a process has a single subscriber, `tracing` asks the default one of the thread that
    // comes to an event first, and caches the answer for all threads: a test with a subscriber of
    // its own would see nothing where another test comes first. With two subscribers it asks both.
    let _second = Dispatch::new(tracing_subscriber::registry());
    let mut suite = Suite::default();
    postgres::tests(&mut suite);
    mariadb::tests(&mut suite);
    mongo::tests(&mut suite);
    mongo_cut::tests(&mut suite);
    mongo_retry::tests(&mut suite);
    mongo_session::tests(&mut suite);
    aggregate::tests(&mut suite);
    bypass::tests(&mut suite);
    clean::tests(&mut suite);
    cut::tests(&mut suite);
    jobs::tests(&mut suite);
    logging::tests(&mut suite);
    observed::tests(&mut suite);
    redis::tests(&mut suite);
    retained::tests(&mut suite);
    rows::tests(&mut suite);
    session::tests(&mut suite);
    testing::tests(&mut suite);
    libtest_mimic::run(&arguments, suite.trials).exit();
}
