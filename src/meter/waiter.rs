//! The task that waits for something of a unit of work.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// Who is to be woken, if anybody is.
///
/// Nothing that is not ours is called under the lock: the last waker of a task takes the task with it, and that
/// may be a part of this very work.
#[derive(Debug, Default)]
pub(super) struct Waiter(Mutex<Option<Waker>>);

impl Waiter {
    /// Has this task woken, and no longer the one before.
    pub(super) fn set(&self, cx: &Context<'_>) {
        let waker = cx.waker().clone();
        let before = self.lock().replace(waker);
        drop(before);
    }

    /// Wakes the task, once.
    pub(super) fn wake(&self) {
        let waker = self.lock().take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        // No access panics half way, so a poisoned one is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
