//! What allocating costs where the counting allocator is not installed; beside `overhead`, where it
//! is.

mod shared;

use criterion::{Criterion, criterion_group, criterion_main};

fn absent(criterion: &mut Criterion) {
    shared::allocate(criterion, "absent");
}

criterion_group!(benches, absent);
criterion_main!(benches);
