//! The functions of the counting allocator that the rest of the crate uses; without the `alloc`
//! feature they do nothing.

#[cfg(feature = "alloc")]
pub(crate) use crate::alloc::counters::{
    Delta, Sample, add_to_total, aside, end, forget, is_installed as is_measured, leave_out,
    raise_peak, since, start,
};

#[cfg(all(feature = "alloc", feature = "testing"))]
pub(crate) use crate::alloc::counters::{peak_site, unwatch, watch};

#[cfg(not(feature = "alloc"))]
mod absent {
    #[derive(Debug, Clone, Copy, Default)]
    pub(crate) struct Sample;

    impl Sample {
        pub(crate) const fn new() -> Self {
            Self
        }
    }

    #[derive(Debug, Clone, Copy, Default)]
    pub(crate) struct Delta {
        pub(crate) allocated: u64,
        pub(crate) net: i64,
        pub(crate) peak: u64,
    }

    pub(crate) fn start() -> (Sample, i64) {
        (Sample, 0)
    }

    pub(crate) fn since(_: Sample) -> Delta {
        Delta::default()
    }

    pub(crate) fn end(_: Sample) -> Option<Delta> {
        None
    }

    pub(crate) fn raise_peak(_: i64) {}

    pub(crate) fn leave_out(_: Delta, _: Sample, _: i64) -> Sample {
        Sample
    }

    pub(crate) fn forget(_: Delta, _: i64) {}

    pub(crate) fn add_to_total() -> i64 {
        0
    }

    pub(crate) fn aside<T>(own: impl FnOnce() -> T) -> T {
        own()
    }

    pub(crate) fn is_measured() -> bool {
        false
    }

    #[cfg(feature = "testing")]
    pub(crate) fn watch() -> bool {
        false
    }

    #[cfg(feature = "testing")]
    pub(crate) fn unwatch() {}

    #[cfg(feature = "testing")]
    pub(crate) fn peak_site() -> Option<Vec<usize>> {
        None
    }
}

#[cfg(not(feature = "alloc"))]
pub(crate) use absent::*;
