//! tracking-allocator, with a tracker that does nothing.

use std::alloc::System;

use tracking_allocator::{AllocationGroupId, AllocationRegistry, AllocationTracker, Allocator};

#[global_allocator]
static ALLOC: Allocator<System> = Allocator::system();

struct Nothing;

impl AllocationTracker for Nothing {
    fn allocated(&self, _: usize, _: usize, _: usize, _: AllocationGroupId) {}

    fn deallocated(
        &self,
        _: usize,
        _: usize,
        _: usize,
        _: AllocationGroupId,
        _: AllocationGroupId,
    ) {
    }
}

fn main() {
    AllocationRegistry::set_global_tracker(Nothing).expect("is the first");
    AllocationRegistry::enable_tracking();
    peers::allocators::probe(|piece| piece());
}
