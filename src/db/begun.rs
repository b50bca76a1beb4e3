//! Where and when something has begun that is waited for.

use std::sync::Arc;
#[cfg(feature = "sqlx")]
use std::time::Duration;

use crate::meter::Meter;
#[cfg(feature = "sqlx")]
use crate::meter::waits::WaitFor;
use crate::scope;
use crate::time::Instant;

/// The unit of work in which it has begun, and when.
///
/// Nothing outside of any: nobody is told the times of that, so no clock is read.
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
    /// Notes for the work that this is waited for.
    pub(super) fn note(&self, what: WaitFor) {
        if let Some((meter, since)) = &self.0 {
            meter.chain().for_each(|meter| meter.begin_other_wait(what, *since));
        }
    }

    /// The work, when it began, and how long it has taken; only the first time.
    pub(super) fn take(&mut self) -> Option<(Arc<Meter>, Instant, Duration)> {
        self.0.take().map(|(meter, since)| (meter, since, since.elapsed()))
    }

    /// Charges how long it has taken, and begins what comes right after it: one reading of the clock, and one
    /// handle of the work, for both.
    pub(super) fn next(&mut self, charge: impl FnOnce(&Meter, Instant, Duration)) -> Self {
        let Some((meter, since)) = self.0.take() else { return Self::now() };
        let now = Instant::now();
        charge(&meter, since, now.saturating_duration_since(since));
        // A future can be polled in one scope after another.
        if scope::is_current(&meter) { Self(Some((meter, now))) } else { Self::now() }
    }

    pub(super) fn meter(&self) -> Option<&Arc<Meter>> {
        self.0.as_ref().map(|(meter, _)| meter)
    }
}
