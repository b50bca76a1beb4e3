//! Ours, inside a unit of work with a limit on memory.

use request_budget::alloc::CountingAllocator;
use request_budget::{Budget, BudgetExt};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

fn main() {
    peers::allocators::probe(|piece| {
        let work = async { piece() }.budgeted("probe", Budget::new().memory(1 << 30));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        runtime.block_on(work).expect("is not cut");
    });
}
