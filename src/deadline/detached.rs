//! Work that was ended while MongoDB commands were in flight, polled on until these are over.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::Span;

use super::Timer;
use crate::report::Outcome;
use crate::scope::Work;

/// Drives a value to completion and discards its output.
pub(crate) type PollOn<T> = fn(Pin<&mut T>, &mut Context<'_>) -> Poll<()>;

pin_project! {
    /// The rest of work that was ended early, polled in a task of its own while commands are in
    /// flight, at most for the grace period.
    pub(crate) struct Detached<T> {
        value: Pin<Box<Option<T>>>,
        poll: PollOn<T>,
        work: Option<Work>,
        outcome: Outcome,
        #[pin]
        grace: Timer,
    }

    impl<T> PinnedDrop for Detached<T> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(mut work) = this.work.take() {
                work.abandon(|| this.value.as_mut().set(None));
                work.finish(*this.outcome);
            }
        }
    }
}

impl<T> Detached<T> {
    pub(super) fn new(
        value: Pin<Box<Option<T>>>,
        poll: PollOn<T>,
        work: Work,
        outcome: Outcome,
    ) -> Self {
        work.stop_clock();
        let grace = Timer::new(work.end_of_grace());
        Self { value, poll, work: Some(work), outcome, grace }
    }
}

impl<T> Future for Detached<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(work) = this.work else { return Poll::Ready(()) };
        let Some(value) = this.value.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        // Checked before the value is polled, which would begin its next command. The driver's pool
        // reports that a connection came back before it hands out the next one.
        if work.poll_commands(cx).is_ready() {
            return Poll::Ready(());
        }
        let span = work.span().cloned().unwrap_or_else(Span::none);
        let polled = work.run(|| span.in_scope(|| (this.poll)(value, cx)));
        // The work is polled before the clock is checked, as everywhere.
        if polled.is_ready() || this.grace.poll_elapsed(cx) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
