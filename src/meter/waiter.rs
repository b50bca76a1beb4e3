//! A task that waits for an event in a unit of work.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// The task to be woken, if any.
///
/// No code of others is called under the lock: dropping the last waker of a task drops the task,
/// which may be part of this work and come back here.
#[derive(Debug, Default)]
pub(super) struct Waiter(Mutex<Option<Waker>>);

impl Waiter {
    /// Registers the current task in place of the one before.
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
        // No access panics midway, so a poisoned one is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
