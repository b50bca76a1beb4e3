//! Where the library reports to: notes everything until the queue is worked off.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use request_budget::report::{Climb, Outcome, Report, Reporter};
use request_budget::{Usage, Violation};

#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) runs: Vec<Run>,
    pub(crate) climbs: Vec<Climb>,
    /// Of runs that have not ended yet.
    open: Vec<Violation>,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) work: String,
    pub(crate) attempt: String,
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    pub(crate) violations: Vec<Violation>,
}

impl Noted {
    pub(crate) fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.runs.iter().flat_map(|run| &run.violations)
    }
}

impl Ledger {
    pub(crate) fn climb(&self, climb: &Climb) {
        self.lock().climbs.push(climb.clone());
    }

    pub(crate) fn take(&self) -> Noted {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        // Nothing panics midway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        self.lock().open.push(violation.clone());
    }

    fn finished(&self, report: &Report<'_>) {
        let mut noted = self.lock();
        // Id and attempt tell which run a violation is of.
        let of_this = |violation: &mut Violation| violation.attributes == *report.attributes();
        let violations = noted.open.extract_if(.., of_this).collect();
        noted.runs.push(Run {
            work: report.work().to_string(),
            attempt: report.attributes().value("attempt").unwrap_or("-").to_owned(),
            outcome: report.outcome(),
            usage: report.usage(),
            violations,
        });
    }
}
