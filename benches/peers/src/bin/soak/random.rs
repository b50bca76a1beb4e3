//! Random numbers that a seed gives again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// SplitMix64; clones share their state.
#[derive(Debug, Clone)]
pub struct Random(Arc<AtomicU64>);

static SEED: AtomicU64 = AtomicU64::new(0);

impl Random {
    /// Seeds all that are made from now on.
    pub fn seed(seed: u64) {
        SEED.store(seed, Relaxed);
    }

    pub fn new(stream: u64) -> Self {
        let seed = SEED.load(Relaxed) ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        let this = Self(Arc::new(AtomicU64::new(seed)));
        this.next();
        this
    }

    pub fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    /// From 0 to 1.
    pub fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}
