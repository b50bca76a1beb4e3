//! The timer for the deadline of a body.

use std::pin::Pin;
use std::task::Context;

use crate::deadline::Timer;
use crate::memory;
use crate::scope::Work;

/// The timer for the deadline of the work; created when a frame of the body is pending for the
/// first time.
///
/// It is boxed to keep the body small: most bodies are complete at once, and are moved before they
/// are polled.
#[derive(Debug, Default)]
pub(super) struct Deadline(Option<Box<Timer>>);

impl Deadline {
    /// Polls the timer; returns whether the time of the work is up, and otherwise wakes the task
    /// when it is.
    #[inline(never)]
    pub(super) fn poll_elapsed(&mut self, work: &Work, cx: &mut Context<'_>) -> bool {
        let timer = self.0.get_or_insert_with(|| {
            let deadline = work.deadline();
            memory::aside(|| Box::new(Timer::new(deadline)))
        });
        Pin::new(&mut **timer).poll_elapsed(cx)
    }
}

impl Drop for Deadline {
    #[inline]
    fn drop(&mut self) {
        // Allocated aside, so it is freed aside.
        if let Some(timer) = self.0.take() {
            memory::aside(|| drop(timer));
        }
    }
}
