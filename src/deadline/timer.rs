//! A point in time to be woken at, which costs nothing until something waits.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Waker};

use super::table::Alarm;
use crate::report::fields::HEALTH;
use crate::time::Instant;

/// Tells when a deadline has passed, and wakes the task then.
///
/// Set at the first poll only: work that is done by then never pays. Polled again it compares and no
/// more; the clock is asked once it has rung.
#[derive(Debug)]
pub(crate) struct Timer {
    at: Option<Instant>,
    alarm: Option<Alarm>,
}

impl Timer {
    /// Never rings without a deadline.
    pub(crate) fn new(at: Option<Instant>) -> Self {
        Self { at, alarm: None }
    }

    /// Whether the time is up; if not, the task will be woken when it is, a few milliseconds late at most.
    #[inline]
    pub(crate) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.get_mut();
        let Some(at) = this.at else { return false };
        !this.is_waiting_for(cx.waker()) && this.look(at, cx)
    }

    /// Whether the time is not up and this task will be woken when it is.
    #[inline]
    pub(crate) fn is_waiting_for(&self, waker: &Waker) -> bool {
        self.alarm.as_ref().is_some_and(|alarm| alarm.is_waiting_for(waker))
    }

    /// Whether something is going to wake the task that polled last.
    pub(super) fn is_set(&self) -> bool {
        self.alarm.is_some()
    }

    /// Looks at the clock, and sets the alarm.
    fn look(&mut self, at: Instant, cx: &Context<'_>) -> bool {
        self.alarm = None;
        // A time limit of zero must not wait for the next tick.
        let now = Instant::now();
        if now >= at {
            return true;
        }
        self.alarm = Alarm::set(at, now, cx.waker());
        if self.alarm.is_none() {
            say_that_none_rings();
        }
        false
    }
}

/// Without timers the clock is looked at on each poll, which is late but better than a panic in somebody's
/// request.
#[cold]
fn say_that_none_rings() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: HEALTH,
            "no tokio runtime with time enabled here: time limits are only checked when the work is \
             polled, so work that waits forever is never cut",
        );
    }
}
