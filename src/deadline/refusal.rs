//! The answer to what a hard limit forbids, which is never there at once.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Timer;
use crate::error::Cut;
use crate::memory;
use crate::scope;
use crate::time::Instant;

/// How long the answer takes to work that goes on asking. Work that is polled by its own future is cut
/// long before; a task that was carried along is not, and would keep a thread busy for ever.
const PAUSE: Duration = Duration::from_millis(10);

/// The answer to something that a hard limit refuses: `Pending` once, unless that was waited for, then the cut.
///
/// The work is cut where a poll of it ends. Answers that are ready would keep a loop which tries again until
/// it succeeds from ever coming to that point.
#[derive(Debug)]
pub(crate) struct Refusal {
    cut: Cut,
    state: State,
}

#[derive(Debug)]
enum State {
    New,
    Yielded,
    // In a box: few refusals are so.
    Paused(Box<Timer>),
}

impl Refusal {
    pub(crate) fn new(cut: Cut) -> Self {
        Self { cut, state: State::New }
    }

    /// The answer to what was waited for until its time was up: there at once.
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
        // Made aside, so freed aside.
        if let State::Paused(timer) = std::mem::replace(&mut self.state, State::Yielded) {
            memory::aside(|| drop(timer));
        }
    }
}
