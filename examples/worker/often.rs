//! How the worker waits for jobs.

use std::task::{Context, Poll};
use std::time::Duration;

use apalis::prelude::{PollSnapshot, PollStrategy};
use tokio::time::{Interval, MissedTickBehavior};

/// Looks for jobs every 20 ms.
///
/// The queue's own way to do that may sleep for half a minute, in 1.0.0: it sets the next alarm
/// only when it is asked again, which nobody does if the last one rang in the poll that found no
/// job.
#[derive(Debug)]
pub(crate) struct Often(Interval);

impl Often {
    pub(crate) fn new() -> Self {
        let mut often = tokio::time::interval(Duration::from_millis(20));
        often.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(often)
    }
}

impl PollStrategy for Often {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let mut rang = Poll::Pending;
        while self.0.poll_tick(cx).is_ready() {
            rang = Poll::Ready(Some(()));
        }
        rang
    }
}
