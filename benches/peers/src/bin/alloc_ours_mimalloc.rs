//! Ours around mimalloc.

use mimalloc::MiMalloc;
use request_budget::alloc::CountingAllocator;

#[global_allocator]
static ALLOC: CountingAllocator<MiMalloc> = CountingAllocator::new(MiMalloc);

fn main() {
    peers::allocators::probe(|piece| piece());
}
