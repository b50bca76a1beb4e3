//! The time of what is under way, added up without knowing each.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::{Instant, nanos};

/// How many things are under way, and the sum of the moments at which they began.
///
/// The time of all of them is then the count times the present, less the sum; no list is needed.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    count: AtomicU64,
    /// Nanoseconds after the start of the work; may wrap, like the product it is taken from.
    began: AtomicU64,
}

impl InFlight {
    pub(super) fn began(&self, origin: Instant, at: Instant) {
        self.began.fetch_add(nanos(at.saturating_duration_since(origin)), Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self, origin: Instant, began: Instant) {
        self.count.fetch_sub(1, Relaxed);
        self.began.fetch_sub(nanos(began.saturating_duration_since(origin)), Relaxed);
    }

    /// The time of all that is under way.
    pub(super) fn time(&self, origin: Instant) -> Duration {
        let count = self.count.load(Relaxed);
        if count == 0 {
            return Duration::ZERO;
        }
        let now = nanos(origin.elapsed()).wrapping_mul(count);
        let time = now.wrapping_sub(self.began.load(Relaxed)).cast_signed();
        // Below zero only where another thread is between its two steps.
        Duration::from_nanos(u64::try_from(time).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn concurrent_times_add_up() {
        let (origin, all) = (Instant::now(), InFlight::default());
        let after = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
        all.began(origin, origin);
        after(2).await;
        let second = Instant::now();
        all.began(origin, second);
        after(3).await;
        assert_eq!(all.time(origin), Duration::from_secs(5 + 3));
        all.ended(origin, origin);
        assert_eq!(all.time(origin), Duration::from_secs(3));
        all.ended(origin, second);
        assert_eq!(all.time(origin), Duration::ZERO);
    }
}
