//! The deadline of a body that is waited for.

use std::pin::Pin;
use std::task::Context;

use crate::deadline::Timer;
use crate::memory;
use crate::scope::Work;

/// The timer for the deadline of the work, once a piece of the body has been waited for.
///
/// In a box: most bodies are complete at once, and are moved about until they are polled.
#[derive(Debug, Default)]
pub(super) struct Deadline(Option<Box<Timer>>);

impl Deadline {
    /// Whether the time of the work is up; if not, the task will be woken when it is.
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
        // Made aside, so freed aside.
        if let Some(timer) = self.0.take() {
            memory::aside(|| drop(timer));
        }
    }
}
