//! What a poll of the work asks, in one load.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

/// Facts about a unit of work that become true at some time and then stay so.
///
/// A whole word, so that it lies where it is declared: beside what is needed with it.
#[derive(Debug)]
pub(super) struct Flags(AtomicU64);

impl Flags {
    /// It is settled inside which work this one runs.
    pub(super) const SETTLED: u64 = 1;
    /// Other tasks may charge this account as well, and so cut the work while it waits.
    pub(super) const SHARED: u64 = 2;
    /// This work, or one that it runs inside, limits the time of polls.
    pub(super) const TIMES_POLLS: u64 = 4;
    /// It has, or had, commands under way that want to know of polls.
    pub(super) const COMMANDS: u64 = 8;
    /// A hard limit ends it.
    pub(super) const CUT: u64 = 16;

    /// The account is that of an HTTP request.
    #[cfg(all(feature = "testing", feature = "http"))]
    pub(super) const REQUEST: u64 = 64;

    /// It runs in a span of its own.
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

    /// Makes these true; what was done before is seen by whoever finds them so.
    pub(super) fn set(&self, these: u64) {
        // Most are set already: a load leaves the line where it is.
        if self.0.load(Acquire) & these != these {
            self.0.fetch_or(these, Release);
        }
    }
}
