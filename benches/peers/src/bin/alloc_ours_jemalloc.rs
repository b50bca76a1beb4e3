//! Ours around jemalloc.

use request_budget::alloc::CountingAllocator;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: CountingAllocator<Jemalloc> = CountingAllocator::new(Jemalloc);

fn main() {
    peers::allocators::probe(|piece| piece());
}
