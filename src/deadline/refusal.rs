//! The future of a refused operation, which is never ready at its first poll.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Timer;
use crate::error::Cut;
use crate::memory;
use crate::scope;
use crate::time::Instant;

/// How long a refusal takes for work that retries in a loop. Work that is polled by its own future
/// is cut long before; a carried task is not, and would keep a thread busy forever.
const PAUSE: Duration = Duration::from_millis(10);

/// The future of an operation that a hard limit refuses: pending once, then ready with the cut.
///
/// Work is cut when its poll ends. If refusals were ready at once, a loop that retries until it
/// succeeds would never let its poll end.
#[derive(Debug)]
pub(crate) struct Refusal {
    cut: Cut,
    state: State,
}

#[derive(Debug)]
enum State {
    New,
    Yielded,
    // Boxed, since few refusals get here.
    Paused(Box<Timer>),
}

impl Refusal {
    pub(crate) fn new(cut: Cut) -> Self {
        Self { cut, state: State::New }
    }

    /// The refusal of an operation that was waited for until its timeout: ready at once, since that
    /// wait has yielded.
    pub(super) fn of_waited(cut: Cut) -> Self {
        Self { cut, state: State::Yielded }
    }

    pub(crate) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        match &mut self.state {
            State::Yielded => return Poll::Ready(self.cut.clone()),
            State::New if scope::is_refused_often() => {
                let at = Instant::now().checked_add(PAUSE);
                let timer = memory::aside(|| Box::new(Timer::new(at)));
                self.state = State::Paused(timer);
            }
            State::New => {
                self.state = State::Yielded;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            State::Paused(_) => {}
        }
        let State::Paused(timer) = &mut self.state else { return Poll::Pending };
        if Pin::new(&mut **timer).poll_elapsed(cx) {
            return Poll::Ready(self.cut.clone());
        }
        if !timer.is_set() {
            // No runtime wakes the task.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Future for Refusal {
    type Output = Cut;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Cut> {
        self.poll_cut(cx)
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        // Allocated at nobody's charge, so freed likewise.
        if let State::Paused(timer) = std::mem::replace(&mut self.state, State::Yielded) {
            memory::aside(|| drop(timer));
        }
    }
}
