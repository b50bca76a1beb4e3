//! Counters of what this thread has allocated and freed, written by the allocator and read by the
//! scope.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

thread_local! {
    // `const` and without a destructor: reachable from the allocator at any time in a thread's
    // life.
    static THREAD: Counters = const { Counters::new() };
}

struct Counters {
    /// Both counters wrap around; only differences are used.
    allocated: Cell<u64>,
    freed: Cell<u64>,
    /// The highest `allocated - freed` since it was last set.
    peak: Cell<i64>,
    /// How much of `allocated - freed` was not charged to any work.
    forgotten: Cell<i64>,
    /// The part of `allocated - freed` and `forgotten` that was added to the total of all threads.
    in_total: Cell<i64>,
    /// The peak above which the stack is captured; unreachable unless a test enables that.
    #[cfg(feature = "testing")]
    watched: Cell<i64>,
}

impl Counters {
    const fn new() -> Self {
        Self {
            allocated: Cell::new(0),
            freed: Cell::new(0),
            peak: Cell::new(0),
            forgotten: Cell::new(0),
            in_total: Cell::new(0),
            #[cfg(feature = "testing")]
            watched: Cell::new(i64::MAX),
        }
    }

    #[inline]
    fn sample(&self) -> Sample {
        Sample { allocated: self.allocated.get(), freed: self.freed.get() }
    }
}

/// Counts an allocation. Called before the wrapped allocator, so that the call of that is a tail
/// call.
#[inline]
pub(super) fn allocated(bytes: usize) {
    // In a thread that is being torn down there is no work to charge.
    let _ = THREAD.try_with(|thread| {
        let allocated = thread.allocated.get().wrapping_add(bytes as u64);
        thread.allocated.set(allocated);
        let net = allocated.wrapping_sub(thread.freed.get()).cast_signed();
        if net > thread.peak.get() {
            thread.peak.set(net);
            #[cfg(feature = "testing")]
            if net >= thread.watched.get() {
                watch::note(&thread.watched, net);
            }
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

/// The counters of this thread at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    allocated: u64,
    freed: u64,
}

impl Sample {
    pub(crate) const fn new() -> Self {
        Self { allocated: 0, freed: 0 }
    }

    #[inline]
    fn net(self) -> i64 {
        self.allocated.wrapping_sub(self.freed).cast_signed()
    }
}

/// The difference between two samples.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Delta {
    pub(crate) allocated: u64,
    /// Allocated minus freed; negative when more was freed.
    pub(crate) net: i64,
    /// The highest value of `net` in between, at least 0.
    pub(crate) peak: u64,
}

/// Starts a stretch: returns the sample of its start, and the peak of the enclosing stretch so far.
#[inline]
pub(crate) fn start() -> (Sample, i64) {
    THREAD
        .try_with(|thread| {
            let sample = thread.sample();
            (sample, thread.peak.replace(sample.net()))
        })
        .unwrap_or_default()
}

/// What has been counted since the start of the stretch.
#[inline]
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

/// Ends a stretch; returns `None` if nothing was counted.
#[inline]
pub(crate) fn end(start: Sample) -> Option<Delta> {
    // Both only grow over a stretch, so their sum stands still if both do; one comparison is
    // cheaper than two.
    let is_news = |thread: &Counters| {
        let now = thread.allocated.get().wrapping_add(thread.freed.get());
        now != start.allocated.wrapping_add(start.freed)
    };
    THREAD.try_with(is_news).unwrap_or(false).then(|| since(start))
}

/// Continues the enclosing stretch, whose peak was this before.
#[inline]
pub(crate) fn raise_peak(outer_peak: i64) {
    let _ = THREAD.try_with(|thread| thread.peak.set(thread.peak.get().max(outer_peak)));
}

/// Excludes a stretch that has ended from the enclosing one, whose peak before was this; returns
/// the new start of the enclosing one.
pub(crate) fn leave_out(stretch: Delta, outer_start: Sample, outer_peak: i64) -> Sample {
    let freed = stretch.allocated.wrapping_sub(stretch.net.cast_unsigned());
    let _ = THREAD.try_with(|thread| thread.peak.set(outer_peak.wrapping_add(stretch.net)));
    Sample {
        allocated: outer_start.allocated.wrapping_add(stretch.allocated),
        freed: outer_start.freed.wrapping_add(freed),
    }
}

/// Excludes a stretch that has ended from all enclosing ones; the peak before it was this.
pub(crate) fn forget(stretch: Delta, outer_peak: i64) {
    let freed = stretch.allocated.wrapping_sub(stretch.net.cast_unsigned());
    let _ = THREAD.try_with(|thread| {
        thread.allocated.set(thread.allocated.get().wrapping_sub(stretch.allocated));
        thread.freed.set(thread.freed.get().wrapping_sub(freed));
        thread.forgotten.set(thread.forgotten.get().wrapping_add(stretch.net));
        thread.peak.set(outer_peak);
    });
}

/// Adds what this thread has allocated and not freed, inside of work and outside, to the total of
/// all threads, and returns the total. It contains each thread as of that thread's last call;
/// threads that never call are missing.
pub(crate) fn add_to_total() -> i64 {
    static TOTAL: AtomicI64 = AtomicI64::new(0);
    let change = |thread: &Counters| {
        let held = thread.sample().net().wrapping_add(thread.forgotten.get());
        held.wrapping_sub(thread.in_total.replace(held))
    };
    let change = THREAD.try_with(change).unwrap_or(0);
    TOTAL.fetch_add(change, Relaxed).wrapping_add(change)
}

/// Runs code of this library whose allocations are not charged to the work that is running here.
pub(crate) fn aside<T>(own: impl FnOnce() -> T) -> T {
    /// Restores the counters when dropped, also by a panic.
    struct Forget((Sample, i64));

    impl Drop for Forget {
        fn drop(&mut self) {
            let (before, peak) = self.0;
            let _ = THREAD.try_with(|thread| {
                let net = thread.sample().net().wrapping_sub(before.net());
                thread.forgotten.set(thread.forgotten.get().wrapping_add(net));
                thread.allocated.set(before.allocated);
                thread.freed.set(before.freed);
                thread.peak.set(peak);
            });
        }
    }

    #[cfg(feature = "testing")]
    let _unwatched = watch::Paused::new();
    let _forget = Forget(start());
    own()
}

#[cfg(feature = "testing")]
pub(crate) use watch::{peak_site, unwatch, watch};

/// Captures the stack of a thread at its peak of memory, for tests.
#[cfg(feature = "testing")]
mod watch {
    use std::cell::Cell;

    use super::THREAD;

    /// The least growth for which the stack is captured again; a quarter of the peak, if that is
    /// more.
    const STEP: i64 = 64 << 10;

    thread_local! {
        // Written from inside the allocator, as the counters are, so nothing here may allocate.
        static STACK: Stack = const { Stack::new() };
    }

    struct Stack {
        /// The live bytes when the watch began.
        base: Cell<i64>,
        frames: [Cell<usize>; Self::MOST],
        len: Cell<usize>,
    }

    impl Stack {
        const MOST: usize = 128;

        const fn new() -> Self {
            Self {
                base: Cell::new(0),
                frames: [const { Cell::new(0) }; Self::MOST],
                len: Cell::new(0),
            }
        }
    }

    /// Captures the stack at each new peak of this thread from now on; returns whether it did not
    /// so before.
    pub(crate) fn watch() -> bool {
        THREAD.with(|thread| {
            if thread.watched.get() != i64::MAX {
                return false;
            }
            let net = thread.allocated.get().wrapping_sub(thread.freed.get()).cast_signed();
            thread.watched.set(net.saturating_add(STEP));
            STACK.with(|stack| {
                stack.base.set(net);
                stack.len.set(0);
            });
            true
        })
    }

    pub(crate) fn unwatch() {
        let _ = THREAD.try_with(|thread| thread.watched.set(i64::MAX));
    }

    /// The stack at the last peak for which it was captured.
    pub(crate) fn peak_site() -> Option<Vec<usize>> {
        let frames = STACK.with(|stack| {
            stack.frames.iter().take(stack.len.get()).map(Cell::get).collect::<Vec<_>>()
        });
        Some(frames).filter(|frames| !frames.is_empty())
    }

    #[cold]
    pub(super) fn note(watched: &Cell<i64>, net: i64) {
        // Capturing the stack may allocate, which must not capture it again.
        watched.set(i64::MAX);
        let _ = STACK.try_with(|stack| {
            stack.len.set(0);
            backtrace::trace(|frame| {
                let len = stack.len.get();
                let Some(slot) = stack.frames.get(len) else { return false };
                slot.set(frame.ip() as usize);
                stack.len.set(len.saturating_add(1));
                true
            });
            let step = STEP.max(net.saturating_sub(stack.base.get()) / 4);
            watched.set(net.saturating_add(step));
        });
    }

    /// Suspends the watch until dropped.
    pub(super) struct Paused(i64);

    impl Paused {
        pub(super) fn new() -> Self {
            Self(THREAD.try_with(|thread| thread.watched.replace(i64::MAX)).unwrap_or(i64::MAX))
        }
    }

    impl Drop for Paused {
        fn drop(&mut self) {
            let _ = THREAD.try_with(|thread| thread.watched.set(self.0));
        }
    }
}

/// Whether the program's global allocator counts, determined once by an allocation.
pub(crate) fn is_installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        aside(|| {
            let (before, _) = start();
            drop(std::hint::black_box(Box::new(0_u64)));
            since(before).allocated > 0
        })
    })
}
