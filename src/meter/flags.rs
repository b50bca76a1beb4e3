//! What each poll of the work has to check, readable by one load.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

/// Facts about a unit of work. Each is false at first, and stays true once it has become true.
///
/// A whole word, so that the compiler keeps the field beside those that are read together with it.
#[derive(Debug)]
pub(super) struct Flags(AtomicU64);

impl Flags {
    /// Which outer work this one runs inside has been determined.
    pub(super) const SETTLED: u64 = 1;
    /// Other tasks may charge this account as well, and so cut the work while it waits.
    pub(super) const SHARED: u64 = 2;
    /// This work, or one that it runs inside, limits the time of polls.
    pub(super) const TIMES_POLLS: u64 = 4;
    /// A MongoDB command was started, so the times of polls have to be noted.
    pub(super) const COMMANDS: u64 = 8;
    /// A hard limit was crossed: the work is to be cut.
    pub(super) const CUT: u64 = 16;

    /// The account is that of an HTTP request.
    #[cfg(all(feature = "testing", feature = "http"))]
    pub(super) const REQUEST: u64 = 64;

    /// It runs in a span of its own, by which drivers' threads recognise it.
    #[cfg(feature = "witness")]
    pub(super) const SPAN: u64 = 32;
    #[cfg(not(feature = "witness"))]
    pub(super) const SPAN: u64 = 0;

    pub(super) const fn new(times_polls: bool) -> Self {
        Self(AtomicU64::new(if times_polls { Self::TIMES_POLLS } else { 0 }))
    }

    /// Whether any of these is true.
    #[inline]
    pub(super) fn any(&self, of: u64) -> bool {
        self.0.load(Acquire) & of != 0
    }

    /// Makes these true. Whoever sees one of them true also sees what this thread wrote before.
    pub(super) fn set(&self, these: u64) {
        // Most are set already, and a load does not take the cache line from other threads.
        if self.0.load(Acquire) & these != these {
            self.0.fetch_or(these, Release);
        }
    }
}
