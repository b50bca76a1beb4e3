//! Ours, with no unit of work running.

use request_budget::alloc::CountingAllocator;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

fn main() {
    peers::allocators::probe(|piece| piece());
}
