//! A reporter that remembers, and what to charge.

use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use request_budget::db::Query;
use request_budget::report::{Attributes, Outcome, Report, Reporter};
use request_budget::{Cut, ExternalExt, Usage, Violation};

/// Remembers what it is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    violations: Vec<Violation>,
    ends: Vec<End>,
}

/// The end of a unit of work.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct End {
    pub(crate) work: String,
    pub(crate) attributes: Attributes,
    pub(crate) begun_by: Option<String>,
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
}

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        self.with(|told| told.violations.push(violation.clone()));
    }

    fn finished(&self, report: &Report<'_>) {
        let end = End {
            work: report.work().to_string(),
            attributes: report.attributes().clone(),
            begun_by: report.begun_by().map(ToString::to_string),
            outcome: report.outcome(),
            usage: report.usage(),
        };
        self.with(|told| told.ends.push(end));
    }
}

impl Ledger {
    fn with<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.0.lock().expect("no test panics while it looks"))
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.with(|told| told.violations.clone())
    }

    /// The violations so far, as they print.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.violations().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn ends(&self) -> Vec<End> {
        self.with(|told| told.ends.clone())
    }

    /// The only end so far.
    pub(crate) fn end(&self) -> End {
        let [end] = <[End; 1]>::try_from(self.ends()).expect("one end");
        end
    }

    /// How all work ended so far, in the order of the ends.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.ends().iter().map(|end| end.outcome).collect()
    }
}

/// Executes a statement, as a driver would.
pub(crate) fn query(text: &str) -> Result<(), Cut> {
    Query::start(text).map(drop)
}

/// Calls an external system, which answers at once; what is refused yields once before.
pub(crate) fn call() -> Result<(), Cut> {
    let mut call = pin!(ready(()).external("payments"));
    let answer = (&mut call).now_or_never();
    answer.or_else(|| call.now_or_never()).expect("ready")
}

/// Lets time pass on the paused clock, within a poll.
pub(crate) fn pass(time: Duration) {
    // The clock is moved by the first poll; what follows only lets timers ring.
    let _ = tokio::time::advance(time).now_or_never();
}

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
