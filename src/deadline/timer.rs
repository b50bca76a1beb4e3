//! A timer that costs nothing until it is polled.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Waker};

use super::table::Alarm;
use crate::report::fields::HEALTH;
use crate::time::Instant;

/// Checks whether a deadline has passed, and wakes the task when it does.
///
/// Only the first poll sets an alarm, so work that is done before never pays for it. Further polls
/// compare two numbers; the clock is read only once the alarm has fired.
#[derive(Debug)]
pub(crate) struct Timer {
    at: Option<Instant>,
    alarm: Option<Alarm>,
}

impl Timer {
    /// Creates a timer, which never elapses without a deadline.
    pub(crate) fn new(at: Option<Instant>) -> Self {
        Self { at, alarm: None }
    }

    /// Whether the deadline has passed. If not, wakes the task when it does, a few milliseconds
    /// late at most.
    #[inline]
    pub(crate) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.get_mut();
        let Some(at) = this.at else { return false };
        !this.is_waiting_for(cx.waker()) && this.look(at, cx)
    }

    /// Whether the deadline has not passed, and the task of this waker is woken when it does.
    #[inline]
    pub(crate) fn is_waiting_for(&self, waker: &Waker) -> bool {
        self.alarm.as_ref().is_some_and(|alarm| alarm.is_waiting_for(waker))
    }

    /// Whether an alarm is set that wakes the task which polled last.
    pub(super) fn is_set(&self) -> bool {
        self.alarm.is_some()
    }

    /// Reads the clock, and sets an alarm if the deadline has not passed.
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

/// Emits a warning, once. Without timers the clock is read on each poll, which is late but better
/// than a panic in a request of the user.
#[cold]
fn say_that_none_rings() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: HEALTH,
            "no tokio runtime with time enabled here: time limits are only checked when the work \
             is polled, so work that waits forever is never cut",
        );
    }
}
