//! Budgets in tests: what is measured, what is demanded, and what a failure says.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod faults;
mod github;
mod logging;
mod messages;
mod ratchet;
mod repetitions;
mod scaling;
mod server;
mod service;
mod sight;
mod snapshot;
mod texts;
mod wirings;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use request_budget::alloc::CountingAllocator;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// What a failing assertion says.
fn failure(assertion: impl FnOnce()) -> String {
    let said = |panic: Box<dyn Any + Send>| *panic.downcast::<String>().unwrap();
    catch_unwind(AssertUnwindSafe(assertion)).map_err(said).expect_err("it does not fail")
}
