//! A point in time to be woken at, which costs nothing until something waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::task::coop::unconstrained;

use crate::report::fields::HEALTH;
use crate::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// Tells when a deadline has passed, and wakes the task then.
    ///
    /// Registered with the runtime at the first poll only: work that is done by then never pays.
    #[derive(Debug)]
    pub(crate) struct Timer {
        at: Option<Instant>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    /// Never rings without a deadline.
    pub(crate) fn new(at: Option<Instant>) -> Self {
        Self { at, sleep: None }
    }

    /// Whether the time is up; if not, the task will be woken when it is.
    pub(crate) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let mut this = self.project();
        let Some(at) = *this.at else { return false };
        // The clock is asked first: a time limit of zero must not wait for the next tick, and the runtime
        // turns its timers rarely while a task that wakes itself keeps it busy.
        if Instant::now() >= at {
            return true;
        }
        if this.sleep.is_none() {
            this.sleep.set(new_sleep(at));
        }
        match this.sleep.as_pin_mut() {
            // Work that has used up its cooperative budget in this poll must not starve its timer.
            Some(sleep) => std::pin::pin!(unconstrained(sleep)).poll(cx) == Poll::Ready(()),
            None => false,
        }
    }

    /// Whether the time is up, without asking to be woken.
    #[cfg(feature = "http")]
    pub(crate) fn is_elapsed(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }
}

/// A timer of the runtime, or none where the runtime has none: then the clock is looked at on each
/// poll, which is late but better than a panic in somebody's request.
fn new_sleep(at: Instant) -> Option<Sleep> {
    // Asked first: even a caught panic prints, and it ends a program that aborts on panics. Whether a
    // runtime has timers cannot be asked.
    let sleep = Handle::try_current()
        .ok()
        .and_then(|_| catch_unwind(AssertUnwindSafe(|| sleep_until(at))).ok());
    static SAID: AtomicBool = AtomicBool::new(false);
    if sleep.is_none() && !SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: HEALTH,
            "no tokio runtime with time enabled here: time limits are only checked when the work is \
             polled, so work that waits forever is never cut",
        );
    }
    sleep
}
