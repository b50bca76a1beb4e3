//! cap.

use std::alloc::System;

#[global_allocator]
static ALLOC: cap::Cap<System> = cap::Cap::new(System, usize::MAX);

fn main() {
    peers::allocators::probe(|piece| piece());
}
