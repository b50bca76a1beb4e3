//! Background work: under the same rules as requests, wherever it runs.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod blocking;
mod causes;
mod children;
mod layer;
mod refusals;
mod runners;
mod same;
mod support;

use request_budget::alloc::CountingAllocator;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();
