//! The allocator of the standard library.

fn main() {
    peers::allocators::probe(|piece| piece());
}
