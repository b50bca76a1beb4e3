//! Random programs of statements, and what they are expected to count.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use request_budget::Usage;

/// One use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// All rows, by the query builder.
    Load,
    /// One row, by its id.
    One(i32),
    /// The rows up to an id, of which so many are taken before the rest is dropped.
    Some(i32, usize),
    Update,
    /// Two statements in one text.
    Batch,
    FailsAtExecution,
    FailsAtPrepare,
}

impl Use {
    /// What is the same of all that differ in values only.
    fn text(self) -> Self {
        match self {
            Self::One(_) => Self::One(0),
            Self::Some(..) => Self::Some(0, 0),
            other => other,
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Update | Self::Batch | Self::FailsAtExecution)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    One(Use),
    /// A transaction, which begins with these, has this inside, and is committed or not.
    Transaction(Vec<Use>, Option<Box<Step>>, bool),
    /// A unit of work inside this one.
    Nested(Vec<Use>),
    /// So many at once on one connection, where that can be.
    Pipelined(usize),
    /// Dropped once it is sent, where that can be.
    Dropped,
    /// Made, and dropped before it is polled, where that can be.
    NeverPolled,
    /// A transaction that is dropped in the middle, and its connection with it.
    DroppedTransaction(Use),
    /// In another task, or on another thread.
    Carried(Use),
    NotCarried(Use),
}

pub(crate) type Program = Vec<Step>;

/// What succeeds anywhere.
fn uses() -> impl Strategy<Value = Use> {
    prop_oneof![
        Just(Use::Load),
        (1..20).prop_map(Use::One),
        (1..20, 0..5_usize).prop_map(|(up_to, take)| Use::Some(up_to, take)),
        Just(Use::Update),
        Just(Use::Batch),
    ]
}

pub(crate) fn programs() -> impl Strategy<Value = Program> {
    let several = || prop::collection::vec(uses(), 0..4);
    let savepoint = (several(), any::<bool>())
        .prop_map(|(uses, commits)| Box::new(Step::Transaction(uses, None, commits)));
    let step = prop_oneof![
        6 => uses().prop_map(Step::One),
        1 => Just(Step::One(Use::FailsAtExecution)),
        1 => Just(Step::One(Use::FailsAtPrepare)),
        4 => (several(), prop::option::of(savepoint), any::<bool>())
            .prop_map(|(uses, inner, commits)| Step::Transaction(uses, inner, commits)),
        2 => several().prop_map(Step::Nested),
        1 => (2..5_usize).prop_map(Step::Pipelined),
        1 => Just(Step::Dropped),
        1 => Just(Step::NeverPolled),
        1 => uses().prop_map(Step::DroppedTransaction),
        1 => uses().prop_map(Step::Carried),
        1 => uses().prop_map(Step::NotCarried),
    ];
    prop::collection::vec(step, 1..8)
}

pub(crate) fn three_hundred() -> TestRunner {
    TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() })
}

/// What the program itself knows of what it did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    executions: HashMap<Use, u64>,
    pub(crate) transactions: u64,
    /// Statements that are counted and that the database does not show.
    pub(crate) unseen: u64,
    /// Statements that the database shows and that are not counted.
    pub(crate) uncounted: u64,
    /// Those that are in no unit of work.
    pub(crate) unattributed: u64,
}

impl Done {
    /// Notes an execution, where a statement that fails when it is executed is seen, or not.
    pub(crate) fn note(&mut self, what: Use, is_failed_seen: bool) {
        let executions = self.executions.entry(what.text()).or_default();
        *executions += 1;
        match what {
            Use::Batch => self.uncounted += 1,
            Use::FailsAtPrepare => self.unseen += 1,
            Use::FailsAtExecution if !is_failed_seen => self.unseen += 1,
            _ => {}
        }
    }

    /// Adds what was done by a part of the program.
    pub(crate) fn add(&mut self, other: Self) {
        for (what, executions) in other.executions {
            *self.executions.entry(what).or_default() += executions;
        }
        self.transactions += other.transactions;
        self.unseen += other.unseen;
        self.uncounted += other.uncounted;
        self.unattributed += other.unattributed;
    }

    /// Compares what was counted with what the program did.
    pub(crate) fn check(&self, usage: &Usage) -> Result<(), TestCaseError> {
        let all = self.executions.values().sum::<u64>();
        let writes = self.executions.iter().filter(|(what, _)| what.writes()).map(|(_, n)| n);
        prop_assert_eq!((usage.queries, usage.observed), (all, all), "{:?}", usage);
        let most = self.executions.values().max().copied().unwrap_or_default();
        prop_assert_eq!(usage.repeated_queries, most, "{:?}", usage);
        prop_assert_eq!(usage.writes, writes.sum::<u64>(), "{:?}", usage);
        prop_assert_eq!(usage.transactions, self.transactions, "{:?}", usage);
        prop_assert_eq!((usage.rows, usage.unmetered), (0, 0));
        Ok(())
    }

    /// Compares it with what the database has executed.
    pub(crate) fn check_witness(&self, usage: &Usage, seen: u64) -> Result<(), TestCaseError> {
        prop_assert_eq!(usage.queries + self.uncounted, seen + self.unseen, "{:?}", usage);
        Ok(())
    }
}
