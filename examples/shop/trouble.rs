//! Endpoints that misbehave without any help from the database.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use tokio::time::Instant;

/// Collects all pages of a document before it sends any: 64 MiB at peak.
pub(crate) async fn hog() -> String {
    let mut pages = Vec::new();
    for page in 0..64_u8 {
        pages.push(vec![page; 1 << 20]);
        tokio::task::yield_now().await;
    }
    format!("{} pages\n", pages.len())
}

/// Computes on the thread that should serve others, without a pause.
pub(crate) async fn hash() -> String {
    let (start, hasher) = (Instant::now(), BuildHasherDefault::<DefaultHasher>::new());
    let mut hash = 0_u64;
    while start.elapsed() < Duration::from_millis(80) {
        hash = (0..1_000).fold(hash, |hash, _| hasher.hash_one(hash));
    }
    format!("{hash:016x}\n")
}

/// Waits for what never comes.
pub(crate) async fn stuck() -> String {
    std::future::pending().await
}

/// Has a bug.
pub(crate) async fn panic() -> String {
    panic!("a bug in GET /panic, on purpose")
}
