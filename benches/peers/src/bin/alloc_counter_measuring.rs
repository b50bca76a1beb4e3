//! allocation-counter, asked to measure.

fn main() {
    peers::allocators::probe(|piece| {
        allocation_counter::measure(piece);
    });
}
