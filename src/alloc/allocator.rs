//! The counting allocator: the only file of the crate with `unsafe` code.
#![expect(unsafe_code, reason = "implementing `GlobalAlloc` is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};

use super::counters;

/// A global allocator that counts, per thread, the bytes that another one allocates and frees.
///
/// See the [module docs](crate::alloc) for what is counted and what is not.
///
/// # Performance
///
/// A few instructions per call on cells of the thread's own: no atomics, no locks, no branch on
/// whether a unit of work is running.
///
/// # Examples
///
/// ```
/// use request_budget::alloc::CountingAllocator;
///
/// #[global_allocator]
/// static ALLOC: CountingAllocator = CountingAllocator::system();
///
/// assert_eq!(vec![1, 2, 3].len(), 3);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator<A = System> {
    inner: A,
}

impl CountingAllocator {
    /// Creates an allocator that counts what the system's allocator does.
    #[must_use]
    pub const fn system() -> Self {
        Self::new(System)
    }
}

impl<A> CountingAllocator<A> {
    /// Creates an allocator that counts what another allocator does.
    #[must_use]
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }

    /// The allocator that is counted.
    pub const fn get_ref(&self) -> &A {
        &self.inner
    }
}

// All four methods: without the last two the trait's defaults would copy or write memory that the
// wrapped allocator moves or zeroes for nothing.
//
// SAFETY: every method hands the caller's arguments to the wrapped allocator unchanged and returns
// what it returned; counting neither allocates nor panics nor unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if may_fail(layout.size()) {
            // SAFETY: the caller promises a layout of non-zero size.
            return counted(layout.size(), unsafe { self.inner.alloc(layout) });
        }
        counters::allocated(layout.size());
        // SAFETY: the caller promises a layout of non-zero size.
        unsafe { self.inner.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        counters::freed(layout.size());
        // SAFETY: the caller promises that `ptr` came from this allocator, thus from the wrapped
        // one, with this layout.
        unsafe { self.inner.dealloc(ptr, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if may_fail(layout.size()) {
            // SAFETY: the caller promises a layout of non-zero size.
            return counted(layout.size(), unsafe { self.inner.alloc_zeroed(layout) });
        }
        counters::allocated(layout.size());
        // SAFETY: the caller promises a layout of non-zero size.
        unsafe { self.inner.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if let Some(growth) = new_size.checked_sub(layout.size()) {
            if may_fail(new_size) {
                // SAFETY: as below.
                return counted(growth, unsafe { self.inner.realloc(ptr, layout, new_size) });
            }
            counters::allocated(growth);
        } else {
            counters::freed(layout.size().saturating_sub(new_size));
        }
        // SAFETY: the caller promises that `ptr` came from this allocator, thus from the wrapped
        // one, with this layout, and that `new_size` is valid for it.
        unsafe { self.inner.realloc(ptr, layout, new_size) }
    }
}

/// Whether an allocation is so large that a program may survive its failure, as with
/// `Vec::try_reserve`.
///
/// For all others it is not checked whether they succeeded, so that the call of the wrapped
/// allocator is a tail call.
#[inline]
const fn may_fail(bytes: usize) -> bool {
    bytes >= 1 << 20
}

/// Counts an allocation if it succeeded.
#[cold]
fn counted(bytes: usize, made: *mut u8) -> *mut u8 {
    if !made.is_null() {
        counters::allocated(bytes);
    }
    made
}
