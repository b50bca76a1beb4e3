//! No allocator of anybody's, inside a future that a runtime polls, as the one that counts for a
//! request is.

fn main() {
    peers::allocators::probe(|piece| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        runtime.block_on(async { piece() });
    });
}
