//! What this thread has allocated and freed; the cells that the allocator writes and the scope reads.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    // `const` and without a destructor: reachable from the allocator at any time in a thread's life.
    static THREAD: Counters = const { Counters::new() };
}

struct Counters {
    /// Both wrap around; only differences are used.
    allocated: Cell<u64>,
    freed: Cell<u64>,
    /// The highest `allocated - freed` since it was last set.
    peak: Cell<i64>,
}

impl Counters {
    const fn new() -> Self {
        Self { allocated: Cell::new(0), freed: Cell::new(0), peak: Cell::new(0) }
    }
}

/// Counts an allocation. Called before the allocator that is wrapped, which leaves it a tail call.
#[inline]
pub(super) fn allocated(bytes: usize) {
    // A thread that is being torn down has nothing to charge.
    let _ = THREAD.try_with(|thread| {
        let allocated = thread.allocated.get().wrapping_add(bytes as u64);
        thread.allocated.set(allocated);
        let net = allocated.wrapping_sub(thread.freed.get()).cast_signed();
        if net > thread.peak.get() {
            thread.peak.set(net);
        }
    });
}

/// Counts a deallocation.
#[inline]
pub(super) fn freed(bytes: usize) {
    let _ = THREAD.try_with(|thread| {
        thread.freed.set(thread.freed.get().wrapping_add(bytes as u64));
    });
}

/// What this thread has counted so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    allocated: u64,
    freed: u64,
}

impl Sample {
    fn net(self) -> i64 {
        self.allocated.wrapping_sub(self.freed).cast_signed()
    }
}

/// What was counted between two samples.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Delta {
    pub(crate) allocated: u64,
    /// Allocated minus freed; negative when more was freed.
    pub(crate) net: i64,
    /// The highest that `net` was on the way, at least 0.
    pub(crate) peak: u64,
}

/// Starts a stretch: returns where it starts, and the peak of the enclosing stretch so far.
pub(crate) fn start() -> (Sample, i64) {
    THREAD
        .try_with(|thread| {
            let sample = Sample { allocated: thread.allocated.get(), freed: thread.freed.get() };
            (sample, thread.peak.replace(sample.net()))
        })
        .unwrap_or_default()
}

/// What has been counted since the start of the stretch.
pub(crate) fn since(start: Sample) -> Delta {
    THREAD
        .try_with(|thread| {
            let allocated = thread.allocated.get().wrapping_sub(start.allocated);
            let freed = thread.freed.get().wrapping_sub(start.freed);
            let peak = thread.peak.get().wrapping_sub(start.net());
            Delta {
                allocated,
                net: allocated.wrapping_sub(freed).cast_signed(),
                peak: u64::try_from(peak).unwrap_or(0),
            }
        })
        .unwrap_or_default()
}

/// Ends a stretch inside another one, whose peak so far was this.
pub(crate) fn resume(outer_peak: i64) {
    let _ = THREAD.try_with(|thread| thread.peak.set(thread.peak.get().max(outer_peak)));
}

/// Whether the program's global allocator counts, found out by asking it once.
pub(crate) fn is_installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let ask = |thread: &Counters| {
            let before = (thread.allocated.get(), thread.freed.get(), thread.peak.get());
            drop(std::hint::black_box(Box::new(0_u64)));
            let counts = thread.allocated.get() != before.0;
            // Whose work it is that runs here is not charged for the question.
            thread.allocated.set(before.0);
            thread.freed.set(before.1);
            thread.peak.set(before.2);
            counts
        };
        THREAD.try_with(ask).unwrap_or(false)
    })
}
