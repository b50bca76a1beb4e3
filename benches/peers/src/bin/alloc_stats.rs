//! stats_alloc.

use std::alloc::System;

#[global_allocator]
static ALLOC: stats_alloc::StatsAlloc<System> = stats_alloc::StatsAlloc::system();

fn main() {
    peers::allocators::probe(|piece| piece());
}
