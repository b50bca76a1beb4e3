//! A unit of work as three sides saw it: we, the program itself, and the witness.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Usage, Violation};
use tracing::Span;

use crate::witness::{Texts, Witness};

/// What the program itself saw, in a unit of work and in those inside it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    rows: AtomicU64,
    /// Rows that a call may have read which was dropped before it handed them over.
    rows_unseen: AtomicU64,
    begins: AtomicU64,
    more_of_batches: AtomicU64,
    refused: AtomicU64,
    outer: Option<Arc<Self>>,
}

impl Tally {
    pub(crate) fn rows(&self, n: u64) {
        self.add(n, |tally| &tally.rows);
    }

    pub(crate) fn rows_unseen(&self, at_most: u64) {
        self.add(at_most, |tally| &tally.rows_unseen);
    }

    /// Notes a transaction, or savepoint, whose beginning was sent.
    pub(crate) fn begin(&self) {
        self.add(1, |tally| &tally.begins);
    }

    /// Notes that the statements of a batch besides the first were executed.
    pub(crate) fn more_of_batch(&self, n: u64) {
        self.add(n, |tally| &tally.more_of_batches);
    }

    /// Notes something that was not sent because of a hard limit.
    pub(crate) fn refuse(&self) {
        self.add(1, |tally| &tally.refused);
    }

    fn add(&self, n: u64, field: fn(&Self) -> &AtomicU64) {
        field(self).fetch_add(n, Relaxed);
        if let Some(outer) = &self.outer {
            outer.add(n, field);
        }
    }
}

/// What we reported of a unit of work.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) usage: Usage,
    pub(crate) outcome: Outcome,
    pub(crate) statements: Texts,
    pub(crate) left_out: u64,
}

/// Keeps every report.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Record>>>);

impl Ledger {
    pub(crate) fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap().clone()
    }
}

impl Reporter for Ledger {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let statements = report.statements().map(|tally| (tally.text.to_owned(), tally.times));
        self.0.lock().unwrap().push(Record {
            usage: report.usage(),
            outcome: report.outcome(),
            statements: statements.collect(),
            left_out: report.statements_left_out(),
        });
    }
}

struct Account {
    ledger: Ledger,
    tally: Arc<Tally>,
    witness: Witness,
}

/// The accounts of all units of work of a program, to be compared when it is done.
#[derive(Clone, Default)]
pub(crate) struct Audit(Arc<Mutex<Vec<Account>>>);

impl Audit {
    /// Opens the account of a unit of work, and gives what writes into it.
    pub(crate) fn open(&self, outer: Option<Arc<Tally>>) -> (Ledger, Arc<Tally>, Span) {
        let (ledger, witness) = (Ledger::default(), Witness::new());
        let tally = Arc::new(Tally { outer, ..Tally::default() });
        let span = witness.span();
        let writers = (ledger.clone(), Arc::clone(&tally), span);
        self.0.lock().unwrap().push(Account { ledger, tally, witness });
        writers
    }

    /// Compares the three sides; with a hard limit on queries also what was refused.
    pub(crate) fn check(&self, limit: Option<u64>) -> Result<(), TestCaseError> {
        let accounts = self.0.lock().unwrap();
        prop_assert!(!accounts.is_empty(), "nothing to compare");
        accounts.iter().try_for_each(|account| account.check(limit))
    }

    /// How many statement texts SQLite executed.
    pub(crate) fn executed(&self) -> u64 {
        self.0.lock().unwrap().iter().map(|account| account.witness.count()).sum()
    }
}

impl Account {
    fn check(&self, limit: Option<u64>) -> Result<(), TestCaseError> {
        let Self { ledger, tally, witness } = self;
        let records = ledger.records();
        let [Record { usage, outcome, statements, left_out }] = &records[..] else {
            return Err(TestCaseError::fail(format!("not one report: {records:?}")));
        };
        let read = |count: &AtomicU64| count.load(Relaxed);

        let texts = witness.texts();
        prop_assert_eq!(statements, &texts);
        prop_assert_eq!(*left_out, 0);
        let executed = texts.values().sum::<u64>() + read(&tally.more_of_batches);
        prop_assert_eq!(usage.queries, executed, "queries, of {:#?}", texts);
        let repeated = texts.values().max().copied().unwrap_or(0);
        prop_assert_eq!(usage.repeated_queries, repeated, "repeated queries, of {:#?}", texts);
        prop_assert_eq!(usage.unmetered, 0);

        prop_assert_eq!(usage.transactions, read(&tally.begins), "transactions");
        let (seen, unseen) = (read(&tally.rows), read(&tally.rows_unseen));
        prop_assert!(
            (seen..=seen + unseen).contains(&usage.rows),
            "{} rows counted, {seen} seen, at most {unseen} unseen",
            usage.rows,
        );

        let refused = read(&tally.refused) > 0;
        prop_assert_eq!(*outcome, if refused { Outcome::Cut } else { Outcome::Ok });
        if let Some(limit) = limit {
            prop_assert!(usage.queries <= limit, "{} queries, limit {limit}", usage.queries);
            prop_assert!(!refused || usage.queries == limit, "refused below the limit");
        }
        Ok(())
    }
}
