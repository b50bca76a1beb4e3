//! What both of the quick benchmarks measure.

use std::hint::black_box;

use criterion::Criterion;

/// Allocates and frees, as a handler does all the time.
pub(crate) fn allocate(criterion: &mut Criterion, allocator: &str) {
    criterion.bench_function(&format!("allocate and free 64 bytes/{allocator}"), |bencher| {
        bencher.iter(|| drop(black_box(Vec::<u8>::with_capacity(black_box(64)))));
    });
}
