//! The one import of the clock and the timer, so that a paused test clock moves all of them.

pub(crate) use tokio::time::{Instant, Sleep, sleep_until};

use std::time::Duration;

/// Nanoseconds as the meter stores them; 584 years fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
