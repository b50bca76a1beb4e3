//! Statements that are charged after the fact, once each, however many report them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::table::Key;
use super::{Meter, Suspect};
use crate::memory;
use crate::resource::Resource;

/// A statement that was executed, as somebody else than a metered connection reports it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation<'a> {
    pub(crate) text: &'a str,
    pub(crate) time: Duration,
    pub(crate) rows: u64,
    pub(crate) reporter: ReportedBy,
}

/// Who reports a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportedBy {
    /// An event of the driver, which is known to be about no metered connection.
    #[cfg_attr(not(feature = "witness"), expect(dead_code, reason = "of the layer for events"))]
    Event,
    /// A callback, which may be about a statement that was counted in another way as well.
    Callback,
}

/// The statements of one unit of work that were counted after the fact.
#[derive(Debug, Default)]
pub(super) struct Observed {
    count: AtomicU64,
    /// By the text. Work that is only metered never has it, so a lock will do.
    reports: Mutex<HashMap<u64, Reports>>,
}

/// How often a text was reported.
#[derive(Debug, Default)]
struct Reports {
    events: u64,
    callbacks: u64,
    /// How many of these were counted.
    counted: u64,
}

impl Observed {
    /// More texts than these are not told apart: a callback about one of them is taken for news.
    const MOST: usize = 1024;

    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Notes a report, and counts its statement unless that is counted already.
    ///
    /// A statement on a plain pool may be reported by an event, by a callback, or by both in either
    /// order; one on a metered connection was counted by it, and may be reported by a callback. So a
    /// text was executed as often as events or callbacks report it, whichever is more, where callbacks
    /// first account for what metered connections have counted.
    fn take(
        &self,
        key: Key,
        by: ReportedBy,
        counted: impl FnOnce() -> u64,
        count: impl FnOnce(),
    ) -> bool {
        // No access panics midway, so a poisoned map is whole.
        let mut all = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = all.len() >= Self::MOST;
        let reports = match all.entry(key.raw()) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(new) if !is_full => Some(new.insert(Reports::default())),
            Entry::Vacant(_) => None,
        };
        let is_news = reports.is_none_or(|reports| {
            let is_news = match by {
                ReportedBy::Event => {
                    reports.events = reports.events.saturating_add(1);
                    reports.events > reports.counted
                }
                ReportedBy::Callback => {
                    reports.callbacks = reports.callbacks.saturating_add(1);
                    reports.callbacks > counted()
                }
            };
            reports.counted = reports.counted.saturating_add(u64::from(is_news));
            is_news
        });
        if is_news {
            self.count.fetch_add(1, Relaxed);
            // Under the lock: the next report asks how often the text was counted.
            count();
        }
        is_news
    }
}

impl Meter {
    /// Charges a statement that was executed, here and in all that this work runs inside, each of
    /// which may know it already; whether this work did not.
    ///
    /// Nothing can be refused any more: a hard limit that it crosses ends the work at the end of its poll.
    pub(crate) fn observe(&self, statement: &Observation<'_>) -> bool {
        let key = Key::of(statement.text);
        let mut is_news = None;
        for meter in self.chain() {
            let is_news_here = meter.observe_here(key, statement);
            is_news.get_or_insert(is_news_here);
        }
        is_news.unwrap_or_default()
    }

    fn observe_here(&self, key: Key, statement: &Observation<'_>) -> bool {
        let Observation { text, time, rows, reporter } = *statement;
        let mut repeated = 0;
        let mut was_unmetered = false;
        let counted = || self.statements.counted(key).map_or(0, |counted| counted.count);
        let mut count = || {
            was_unmetered = reporter == ReportedBy::Callback && self.is_overdue(key);
            repeated = self.statements.count(key, text);
        };
        let observed = &self.rare().observed;
        if !memory::aside(|| observed.take(key, reporter, counted, &mut count)) {
            return false;
        }
        if was_unmetered {
            self.forget_unmetered(text);
        }
        let suspect = Suspect::Statement(key);
        self.add(Resource::Queries, 1, Suspect::TopStatement);
        self.raise(Resource::RepeatedQueries, repeated, suspect);
        if self.statements.writes(key, text) {
            self.add(Resource::Writes, 1, suspect);
        }
        if rows > 0 {
            self.add(Resource::Rows, rows, suspect);
        }
        self.add_statement_time(Some(key), time);
        true
    }
}

#[cfg(feature = "witness")]
impl Meter {
    /// Whether a witness has seen this text more often than it was counted so far.
    fn is_overdue(&self, key: Key) -> bool {
        self.statements.is_overdue(key)
    }

    /// Takes back what a witness has said of a statement before its callback came.
    fn forget_unmetered(&self, text: &str) {
        let one_less = |unmetered: u64| unmetered.checked_sub(1);
        // Nothing to take back where no witness has compared it.
        let _ = self.rare().unmetered.fetch_update(Relaxed, Relaxed, one_less);
        #[cfg(feature = "testing")]
        memory::aside(|| self.recording().into_iter().for_each(|r| r.forget_unmetered(text)));
        #[cfg(not(feature = "testing"))]
        let _ = text;
    }
}

#[cfg(not(feature = "witness"))]
impl Meter {
    #[expect(clippy::unused_self, reason = "without witnesses none has seen anything")]
    fn is_overdue(&self, _: Key) -> bool {
        false
    }

    #[expect(clippy::unused_self, reason = "without witnesses none has seen anything")]
    fn forget_unmetered(&self, _: &str) {}
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "small numbers")]
mod tests {
    use super::ReportedBy::{Callback, Event};
    use super::*;

    /// What is counted of these reports, behind so many executions on metered connections.
    fn counted(metered: u64, reports: &[ReportedBy]) -> u64 {
        let observed = Observed::default();
        let total = AtomicU64::new(metered);
        for by in reports {
            let count = || {
                total.fetch_add(1, Relaxed);
            };
            observed.take(Key::of("SELECT 1"), *by, || total.load(Relaxed), count);
        }
        assert_eq!(observed.count(), total.load(Relaxed) - metered);
        observed.count()
    }

    #[test]
    fn a_statement_is_counted_once_however_many_report_it() {
        assert_eq!(counted(0, &[Event, Event]), 2);
        assert_eq!(counted(0, &[Callback, Callback]), 2);
        assert_eq!(counted(0, &[Event, Callback, Event, Callback]), 2);
        assert_eq!(counted(0, &[Callback, Event, Callback, Event]), 2);
        assert_eq!(counted(0, &[Callback, Callback, Event, Event, Event]), 3);
    }

    #[test]
    fn callbacks_account_for_metered_executions_first() {
        assert_eq!(counted(2, &[Callback, Callback]), 0);
        assert_eq!(counted(2, &[Callback, Callback, Callback]), 1);
        assert_eq!(counted(1, &[Callback, Event, Callback]), 1);
        assert_eq!(counted(2, &[Event, Callback]), 1);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let observed = Observed::default();
        for n in 0..2_000 {
            assert!(observed.take(Key::of(&n.to_string()), Event, || 0, || ()));
        }
        assert_eq!(observed.reports.lock().unwrap().len(), Observed::MOST);
    }
}
