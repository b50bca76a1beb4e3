//! The limit on how long the server waits for the next frame of a body.

use std::pin::Pin;
use std::task::Context;

use crate::deadline::Timer;
use crate::error::Cut;
use crate::memory;
use crate::meter::{InFlightSince, Suspect};
use crate::resource::Resource;
use crate::scope::Work;
use crate::time::{Instant, nanos};

/// One wait for the next frame.
#[derive(Debug)]
pub(super) struct Wait {
    since: Instant,
    timer: Timer,
    /// What the body was waiting for at its last poll.
    last: Option<InFlightSince>,
}

/// The wait for the next frame, if one is running.
///
/// Boxed, since few bodies have this limit, and fewer of them are ever pending.
#[derive(Debug, Default)]
pub(super) struct Idle(Option<Box<Wait>>);

impl Idle {
    /// Polls the timer. Returns the cut if the wait was too long, and otherwise wakes the task when
    /// it is.
    pub(super) fn poll_elapsed(&mut self, work: &Work, cx: &mut Context<'_>) -> Option<Cut> {
        let meter = work.meter()?;
        let limits = meter.limits();
        if !limits.names(Resource::BodyIdle) {
            return None;
        }
        let wait = self.0.get_or_insert_with(|| {
            let since = Instant::now();
            let longest = limits.hard_time(Resource::BodyIdle);
            let at = longest.and_then(|longest| since.checked_add(longest));
            memory::aside(|| Box::new(Wait { since, timer: Timer::new(at), last: None }))
        });
        wait.last = meter.longest_in_flight();
        let is_elapsed = Pin::new(&mut wait.timer).poll_elapsed(cx);
        is_elapsed.then(|| work.cut_idle(wait.since.elapsed(), wait.last))
    }

    /// Whether a wait is running, which has to be [ended](Self::end).
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }

    /// Ends the wait, because a frame or the end has arrived.
    pub(super) fn end(&mut self, work: &Work) {
        if let (Some(wait), Some(meter)) = (self.0.take(), work.meter()) {
            let (waited, last) = (wait.since.elapsed(), wait.last);
            memory::aside(|| drop(wait));
            meter.raise(Resource::BodyIdle, nanos(waited), Suspect::Idling(last));
        }
    }
}

impl Drop for Idle {
    #[inline]
    fn drop(&mut self) {
        // Allocated at nobody's charge, so freed likewise.
        if let Some(wait) = self.0.take() {
            memory::aside(|| drop(wait));
        }
    }
}
