//! Where violations and usage go: `tracing` events, and a [`Reporter`] of the user's own.
//!
//! Every violation leaves as one `tracing` event with the target [`fields::VIOLATION`], at WARN for
//! a soft limit and at ERROR for a hard one, inside the span of the work; at most so many a second
//! of one kind, see [`limit_events`]. At the end of each unit of work there is one event with the
//! target [`fields::USAGE`], at DEBUG. A [`Reporter`] gets both as data. Two of them go together as
//! a pair; [`Growth`] is one that tells of memory that climbs run after run.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::sync::{Arc, Mutex};
//! use request_budget::report::{Outcome, Report, Reporter};
//! use request_budget::{Budget, BudgetExt, Violation};
//!
//! #[derive(Clone, Default)]
//! struct Ledger(Arc<Mutex<Vec<String>>>);
//!
//! impl Reporter for Ledger {
//!     fn violation(&self, _: &Violation) {}
//!
//!     fn finished(&self, report: &Report<'_>) {
//!         assert_eq!(report.outcome(), Outcome::Ok);
//!         self.0.lock().unwrap().push(format!("{}: {}", report.work(), report.usage().queries));
//!     }
//! }
//!
//! let ledger = Ledger::default();
//! async {}.budgeted("nothing", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
//! assert_eq!(*ledger.0.lock().unwrap(), ["nothing: 0"]);
//! # }
//! ```

pub(crate) mod elsewhere;
mod events;
pub mod fields;
mod growth;
#[cfg(feature = "http")]
pub(crate) mod method;
mod name;
mod rate;
pub(crate) mod seldom;
#[cfg(feature = "testing")]
pub(crate) mod suite;
pub(crate) mod unmeasured;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::memory::Delta;
use crate::meter::Meter;
use crate::meter::table::{Entry, Table};
use crate::resource::Resource;
use crate::usage::Usage;
use crate::violation::{Severity, Violation};

pub use crate::attributes::Attributes;
pub use growth::{Climb, Growth};
pub use name::Name;
#[cfg(feature = "http")]
pub(crate) use name::Verb;
pub use rate::limit_events;

/// Takes violations, and the usage of work that has ended, to where the user wants them.
///
/// Implemented by closures that take a `&Violation`. Called besides the `tracing` events, on the
/// thread and at the moment of the crossing, with the work waiting: be quick, do not block.
///
/// # Panics
///
/// A reporter should not panic. If it does, the panic is caught and reported by a `tracing` event,
/// and the work continues.
pub trait Reporter: Send + Sync + 'static {
    /// A limit was crossed.
    fn violation(&self, violation: &Violation);

    /// A unit of work has ended. Does nothing unless implemented.
    fn finished(&self, report: &Report<'_>) {
        let _ = report;
    }
}

impl<F> Reporter for F
where
    F: Fn(&Violation) + Send + Sync + 'static,
{
    fn violation(&self, violation: &Violation) {
        self(violation);
    }
}

/// Notifies both, in this order; if the first panics, the second is not notified.
impl<A: Reporter, B: Reporter> Reporter for (A, B) {
    fn violation(&self, violation: &Violation) {
        self.0.violation(violation);
        self.1.violation(violation);
    }

    fn finished(&self, report: &Report<'_>) {
        self.0.finished(report);
        self.1.finished(report);
    }
}

impl fmt::Debug for dyn Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// How a unit of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// By itself; a request with a complete body and a status below 500, a task with any output.
    Ok,
    /// A request with an error of its service or body, or a status of 500 or above.
    Error,
    /// By a hard limit.
    Cut,
    /// By a panic.
    Panicked,
    /// Dropped before its end, as when a client hangs up.
    Cancelled,
}

impl Outcome {
    /// The stable name, as in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Cut => "cut",
            Self::Panicked => "panicked",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A unit of work that has ended.
///
/// See the [module docs](self) for an example.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    meter: &'a Meter,
    outcome: Outcome,
}

impl<'a> Report<'a> {
    fn new(meter: &'a Meter, outcome: Outcome) -> Self {
        Self { meter, outcome }
    }

    /// The name of the work.
    #[must_use]
    pub fn work(&self) -> &'a Name {
        self.meter.name()
    }

    /// What distinguishes this run from others of the same name.
    #[must_use]
    pub fn attributes(&self) -> &'a Attributes {
        &self.meter.origin().attributes
    }

    /// The name of the unit of work in which this one was begun, if it was in one.
    #[must_use]
    pub fn begun_by(&self) -> Option<&'a Name> {
        self.meter.origin().begun_by.as_ref()
    }

    /// When it began, by the clock on the wall: the present less what has passed.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.meter.elapsed()).unwrap_or(now)
    }

    /// How it ended.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What it has consumed.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.meter.usage(Delta::default())
    }

    /// Bytes allocated less bytes freed, where that is measured: below zero where others' were
    /// freed.
    pub(crate) fn net_memory(&self) -> Option<i64> {
        self.meter.net_memory()
    }

    /// Whether MongoDB's driver has run commands in it.
    pub(crate) fn has_run_commands(&self) -> bool {
        self.meter.has_run_commands()
    }

    /// How many limits it crossed.
    #[must_use]
    pub fn violations(&self) -> u32 {
        self.meter.violations()
    }

    /// The distinct statements that it executed, in no particular order.
    ///
    /// Bounded: of work with more than some hundred different statements the rest is in
    /// [`statements_left_out`](Self::statements_left_out).
    pub fn statements(&self) -> impl Iterator<Item = Tally<'a>> {
        self.meter.statements().iter().map(Tally::new)
    }

    /// How many executions [`statements`](Self::statements) leaves out.
    #[must_use]
    pub fn statements_left_out(&self) -> u64 {
        self.meter.statements().left_out()
    }

    /// The statements that a [`SqlxEvents`](crate::db::SqlxEvents) saw and that no metered
    /// connection counted, with how often and no times; bounded as well.
    #[cfg(feature = "witness")]
    pub fn unmetered(&self) -> impl Iterator<Item = Tally<'a>> {
        let tally = |(entry, times): (&'a Entry, u64)| Tally {
            text: entry.text(),
            times,
            time: Duration::ZERO,
        };
        self.meter.statements().uncounted().map(tally)
    }

    /// The kinds of commands that it sent to caches, in no particular order; bounded as well.
    #[cfg(feature = "redis")]
    pub fn cache_calls(&self) -> impl Iterator<Item = Tally<'a>> {
        self.meter.caches().into_iter().flat_map(Table::iter).map(Tally::new)
    }

    /// The external systems that it called, by name, in no particular order; bounded as well.
    pub fn external_calls(&self) -> impl Iterator<Item = Tally<'a>> {
        self.meter.externals().into_iter().flat_map(Table::iter).map(Tally::new)
    }
}

/// How often one statement was executed, or one external system called, and how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally<'a> {
    /// The text of the statement, or its beginning; or the name of the external system.
    pub text: &'a str,
    /// How often.
    pub times: u64,
    /// How long, added up.
    pub time: Duration,
}

impl<'a> Tally<'a> {
    fn new(entry: &'a Entry) -> Self {
        Self { text: entry.text(), times: entry.count(), time: Duration::from_nanos(entry.nanos()) }
    }
}

/// Reports a violation, which is created only if a subscriber or a reporter receives it.
pub(crate) fn violation(
    meter: &Meter,
    resource: Resource,
    severity: Severity,
    make: impl FnOnce() -> Violation,
) {
    guarded(|| {
        let left_out = rate::admit(meter.name(), resource, severity);
        let reporter = meter.reporter();
        if left_out.is_none() && reporter.is_none() {
            return;
        }
        let violation = make();
        if let Some(left_out) = left_out {
            events::violation(meter, &violation, left_out);
        }
        if let Some(reporter) = reporter {
            reporter.violation(&violation);
        }
    });
}

/// Whether anybody may want to know of the end of a unit of work.
#[inline]
pub(crate) fn is_end_of_interest(meter: &Meter) -> bool {
    cfg!(feature = "testing")
        || LevelFilter::current() >= Level::DEBUG
        || meter.reporter().is_some()
}

/// Reports the end of a unit of work.
pub(crate) fn finished(meter: &Meter, outcome: Outcome) {
    guarded(|| {
        #[cfg(feature = "testing")]
        suite::note(meter);
        events::usage(meter, outcome);
        if let Some(reporter) = meter.reporter() {
            reporter.finished(&Report::new(meter, outcome));
        }
    });
}

/// Keeps a panic of a reporter, or of a subscriber, away from the work.
pub(crate) fn guarded(report: impl FnOnce()) {
    // The closures only read shared state that a panic elsewhere cannot leave half changed.
    if catch_unwind(AssertUnwindSafe(report)).is_err() {
        let say = || {
            tracing::error!(target: fields::HEALTH, "a reporter panicked; its report may be lost");
        };
        // It may be the subscriber itself that panics.
        drop(catch_unwind(AssertUnwindSafe(say)));
    }
}
