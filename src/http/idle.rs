//! How long the server waits for the next piece of a body.

use std::pin::Pin;
use std::task::Context;

use pin_project_lite::pin_project;

use crate::deadline::Timer;
use crate::error::Cut;
use crate::meter::Suspect;
use crate::resource::Resource;
use crate::scope::Work;
use crate::time::{Instant, nanos};

pin_project! {
    /// The wait for the next piece, if one is being waited for and its length matters.
    #[derive(Debug, Default)]
    pub(super) struct Idle {
        since: Option<Instant>,
        #[pin]
        timer: Option<Timer>,
    }
}

impl Idle {
    /// Whether the wait has been too long; if not, the task will be woken when it is.
    pub(super) fn poll_elapsed(
        self: Pin<&mut Self>,
        work: &Work,
        cx: &mut Context<'_>,
    ) -> Option<Cut> {
        let limits = work.meter()?.limits();
        if !limits.names(Resource::BodyIdle) {
            return None;
        }
        let mut this = self.project();
        let since = *this.since.get_or_insert_with(Instant::now);
        if this.timer.is_none() {
            let longest = limits.hard_time(Resource::BodyIdle);
            let at = longest.and_then(|longest| since.checked_add(longest));
            this.timer.set(Some(Timer::new(at)));
        }
        let is_elapsed = this.timer.as_pin_mut()?.poll_elapsed(cx);
        is_elapsed.then(|| work.was_idle(since.elapsed()))
    }

    /// Ends the wait: a piece is there, or the end.
    pub(super) fn end(self: Pin<&mut Self>, work: &Work) {
        let mut this = self.project();
        if let (Some(since), Some(meter)) = (this.since.take(), work.meter()) {
            this.timer.set(None);
            meter.raise(Resource::BodyIdle, nanos(since.elapsed()), Suspect::Nobody);
        }
    }
}
