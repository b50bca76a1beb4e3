//! The start of a wait: its unit of work and its time.

use std::sync::Arc;
#[cfg(feature = "sqlx")]
use std::time::Duration;

use crate::meter::Meter;
#[cfg(feature = "sqlx")]
use crate::meter::waits::WaitFor;
use crate::scope;
use crate::time::Instant;

/// The unit of work in which a wait has begun, and when it began.
///
/// `None` outside of all units of work, where no time is reported and so the clock is not read.
pub(crate) struct Begun(Option<(Arc<Meter>, Instant)>);

impl Begun {
    pub(super) fn now() -> Self {
        Self(scope::current().map(|meter| (meter, Instant::now())))
    }

    pub(super) fn parts(self) -> (Option<Arc<Meter>>, Option<Instant>) {
        self.0.unzip()
    }
}

#[cfg(feature = "sqlx")]
impl Begun {
    /// Notes in the account of the work that it is waiting for this.
    pub(super) fn note(&self, what: WaitFor) {
        if let Some((meter, since)) = &self.0 {
            meter.each(|meter| meter.begin_other_wait(what, *since));
        }
    }

    /// The work, the start, and the time since then; `None` if called again.
    pub(super) fn take(&mut self) -> Option<(Arc<Meter>, Instant, Duration)> {
        self.0.take().map(|(meter, since)| (meter, since, since.elapsed()))
    }

    /// Charges the time of this wait and starts the one that directly follows, with one reading of
    /// the clock and one handle of the work for both.
    pub(super) fn next(&mut self, charge: impl FnOnce(&Meter, Instant, Duration)) -> Self {
        let Some((meter, since)) = self.0.take() else { return Self::now() };
        let now = Instant::now();
        charge(&meter, since, now.saturating_duration_since(since));
        // A future can be polled in different scopes.
        if scope::is_current(&meter) { Self(Some((meter, now))) } else { Self::now() }
    }

    pub(super) fn meter(&self) -> Option<&Arc<Meter>> {
        self.0.as_ref().map(|(meter, _)| meter)
    }
}
