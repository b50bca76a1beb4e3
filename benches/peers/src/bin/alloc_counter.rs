//! allocation-counter, which brings its own global allocator; not asked to measure.

use allocation_counter as _;

fn main() {
    peers::allocators::probe(|piece| piece());
}
