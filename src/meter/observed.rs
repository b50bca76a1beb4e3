//! Statements that are reported after they were executed, and charged once each, however many
//! sources report them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::table::Key;
use super::{Meter, Suspect};
use crate::memory;
use crate::resource::Resource;

/// A statement that was executed, as reported by something else than a metered connection.
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
    /// An event of the driver, about a connection that is known not to be metered.
    #[cfg_attr(
        not(any(feature = "diesel", feature = "witness")),
        expect(dead_code, reason = "of drivers that report by themselves")
    )]
    Event,
    /// A callback, about a statement that may be counted in another way as well.
    Callback,
}

/// The statements of one unit of work that were counted after the fact.
#[derive(Debug, Default)]
pub(super) struct Observed {
    count: AtomicU64,
    /// By the text without its white space, since sqlx 0.7 reformats the texts of its events. Work
    /// on metered connections only never fills it, so a lock is cheap enough.
    reports: Mutex<HashMap<u64, Reports>>,
}

/// How often a text was reported.
#[derive(Debug)]
struct Reports {
    /// The text as it was reported first: all are counted as this one.
    key: Key,
    events: u64,
    callbacks: u64,
    /// How many of these were counted.
    counted: u64,
    /// The rows that the events report, and those that were counted.
    event_rows: u64,
    counted_rows: u64,
}

/// What is to be charged for a report.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Taken {
    /// The statement, which nobody has reported before, by this text.
    Statement(Key),
    /// Rows of which the callback that came first did not know.
    Rows(u64),
}

impl Observed {
    /// The most texts that are distinguished. A callback about a further one always counts as a new
    /// statement.
    const MOST: usize = 1024;

    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Notes a report, and counts its statement unless that is counted already.
    ///
    /// A statement on a plain pool may be reported by an event, by a callback, or by both in either
    /// order; one on a metered connection was counted by it, and may be reported by a callback. So
    /// a text was executed as often as events or callbacks report it, whichever is more, where
    /// callbacks first account for what metered connections have counted. The callbacks of ORMs
    /// know no rows: an event that comes after one, as those of SQLite's threads may, brings them.
    fn take(
        &self,
        (key, words): (Key, Key),
        by: ReportedBy,
        rows: u64,
        counted: impl FnOnce() -> u64,
        count: impl FnOnce(Key),
    ) -> Taken {
        // No access panics midway, so a poisoned map is whole.
        let mut all = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = all.len() >= Self::MOST;
        let reports = match all.entry(words.raw()) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(new) if !is_full => Some(new.insert(Reports::of(key))),
            Entry::Vacant(_) => None,
        };
        let taken =
            reports.map_or(Taken::Statement(key), |reports| reports.take(key, by, rows, counted));
        if let Taken::Statement(key) = taken {
            self.count.fetch_add(1, Relaxed);
            // Under the lock, since the next report depends on how often the text was counted.
            count(key);
        }
        taken
    }
}

impl Reports {
    fn of(key: Key) -> Self {
        Self { key, events: 0, callbacks: 0, counted: 0, event_rows: 0, counted_rows: 0 }
    }

    /// `counted` returns how often exactly this text was counted so far.
    fn take(
        &mut self,
        key: Key,
        by: ReportedBy,
        rows: u64,
        counted: impl FnOnce() -> u64,
    ) -> Taken {
        let is_news = match by {
            ReportedBy::Event => {
                self.events = self.events.saturating_add(1);
                self.event_rows = self.event_rows.saturating_add(rows);
                self.events > self.counted
            }
            ReportedBy::Callback => {
                self.callbacks = self.callbacks.saturating_add(1);
                let otherwise = if key == self.key { 0 } else { self.counted };
                self.callbacks > counted().saturating_add(otherwise)
            }
        };
        let more = if is_news { rows } else { self.event_rows.saturating_sub(self.counted_rows) };
        self.counted_rows = self.counted_rows.saturating_add(more);
        if is_news {
            self.counted = self.counted.saturating_add(1);
            Taken::Statement(self.key)
        } else {
            Taken::Rows(more)
        }
    }
}

impl Meter {
    /// Charges a statement that was executed, in this account and all outer ones, unless an account
    /// has counted it already. Returns whether this one had not.
    ///
    /// The statement cannot be refused any more: if it crosses a hard limit, the work is cut when
    /// its poll ends.
    pub(crate) fn observe(&self, statement: &Observation<'_>) -> bool {
        let words = memory::aside(|| Key::of_words(statement.text));
        let keys = (Key::of(statement.text), words);
        let mut taken = None;
        for meter in self.chain() {
            let taken_here = meter.observe_here(keys, statement);
            taken.get_or_insert(taken_here);
        }
        match taken {
            Some(Taken::Rows(more)) if more > 0 => self.record_more_rows(statement.text, more),
            _ => {}
        }
        matches!(taken, Some(Taken::Statement(_)))
    }

    fn observe_here(&self, keys: (Key, Key), statement: &Observation<'_>) -> Taken {
        let Observation { text, time, rows, reporter } = *statement;
        let mut repeated = 0;
        let mut was_unmetered = false;
        let counted = || self.statements.counted(keys.0).map_or(0, |counted| counted.count);
        let mut count = |key| {
            was_unmetered = reporter == ReportedBy::Callback && self.is_overdue(keys.0);
            repeated = self.statements.count(key, text);
        };
        let observed = &self.rare().observed;
        let taken = memory::aside(|| observed.take(keys, reporter, rows, counted, &mut count));
        let key = match taken {
            Taken::Statement(key) => key,
            Taken::Rows(more) => {
                if more > 0 {
                    self.add(Resource::Rows, more, Suspect::Statement(keys.0));
                }
                return taken;
            }
        };
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
        taken
    }
}

#[cfg(feature = "testing")]
impl Meter {
    /// Adds rows to a statement that was recorded before; all recordings share its entry.
    fn record_more_rows(&self, text: &str, rows: u64) {
        memory::aside(|| {
            if let Some(recording) = self.recordings().next() {
                recording.add_rows(text, rows);
            }
        });
    }
}

#[cfg(not(feature = "testing"))]
impl Meter {
    #[expect(clippy::unused_self, reason = "nothing is recorded")]
    fn record_more_rows(&self, _: &str, _: u64) {}
}

#[cfg(feature = "witness")]
impl Meter {
    /// Whether a witness has reported this text more often than it was counted so far.
    fn is_overdue(&self, key: Key) -> bool {
        self.statements.is_overdue(key)
    }

    /// Undoes that a witness reported a statement as unmetered, now that its callback has come.
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

    fn keys(text: &str) -> (Key, Key) {
        (Key::of(text), Key::of_words(text))
    }

    /// What is counted of these reports, behind so many executions on metered connections.
    fn counted(metered: u64, reports: &[ReportedBy]) -> u64 {
        let observed = Observed::default();
        let total = AtomicU64::new(metered);
        for by in reports {
            let count = |_| {
                total.fetch_add(1, Relaxed);
            };
            observed.take(keys("SELECT 1"), *by, 0, || total.load(Relaxed), count);
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
    fn texts_that_differ_in_white_space_are_one_and_counted_as_the_first() {
        const PLAIN: &str = "SELECT a FROM b WHERE c=1";
        const LAID_OUT: &str = "SELECT\n  a\nFROM\n  b\nWHERE\n  c = 1";
        for [first, second] in
            [[(PLAIN, Callback), (LAID_OUT, Event)], [(LAID_OUT, Event), (PLAIN, Callback)]]
        {
            let observed = Observed::default();
            // How often each text was counted, metered executions included.
            let counts = Mutex::new(HashMap::from([(Key::of(PLAIN).raw(), 1_u64)]));
            let mut all = vec![(PLAIN, Callback)];
            all.extend([first, second, first, second]);
            for (text, by) in all {
                let counted =
                    || counts.lock().unwrap().get(&Key::of(text).raw()).copied().unwrap_or(0);
                let count = |key: Key| *counts.lock().unwrap().entry(key.raw()).or_insert(0) += 1;
                observed.take(keys(text), by, 0, counted, count);
            }
            assert_eq!(observed.count(), 2, "{first:?} first");
            // All of them as the text of the callback that came first.
            assert_eq!(counts.lock().unwrap()[&Key::of(PLAIN).raw()], 3);
        }
    }

    #[test]
    fn rows_of_an_event_count_once_whoever_comes_first() {
        /// The rows that are counted of these reports, none of which is of a metered connection.
        fn rows(all: &[(ReportedBy, u64)]) -> u64 {
            let key = Key::of("SELECT 1");
            let mut reports = Reports::of(key);
            for (by, rows) in all {
                let counted = reports.counted;
                reports.take(key, *by, *rows, || counted);
            }
            reports.counted_rows
        }

        assert_eq!(rows(&[(Event, 3), (Callback, 0)]), 3);
        assert_eq!(rows(&[(Callback, 0), (Event, 3)]), 3);
        assert_eq!(rows(&[(Callback, 3), (Event, 3)]), 3);
        assert_eq!(rows(&[(Callback, 0), (Callback, 0), (Event, 3), (Event, 0)]), 3);
        assert_eq!(rows(&[(Event, 2), (Callback, 0), (Callback, 0), (Event, 3)]), 5);
        assert_eq!(rows(&[(Callback, 2), (Callback, 3)]), 5);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let observed = Observed::default();
        for n in 0..2_000 {
            let text = n.to_string();
            let taken = observed.take(keys(&text), Event, 0, || 0, |_| ());
            assert_eq!(taken, Taken::Statement(Key::of(&text)));
        }
        assert_eq!(observed.reports.lock().unwrap().len(), Observed::MOST);
    }
}
