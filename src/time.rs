//! The only import of clock and timers, so that a paused test clock governs all of them.

pub(crate) use tokio::time::{Instant, Sleep, sleep_until};

use std::time::Duration;

/// Nanoseconds as the meter stores them; 584 years fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a test has paused the clock.
#[expect(clippy::disallowed_types, reason = "what is paused is compared with what is not")]
pub(crate) fn is_paused() -> bool {
    let before = Instant::now();
    let since = std::time::Instant::now();
    // Spins until the real clock has advanced by a tick, which takes some nanoseconds.
    while std::time::Instant::now() <= since {
        std::hint::spin_loop();
    }
    Instant::now() == before
}
