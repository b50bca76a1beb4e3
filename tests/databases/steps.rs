//! Random programs for pools that are plain.

use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Commit,
    Rollback,
    Drop,
}

/// One use of an executor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    FetchOne,
    FetchOptional,
    FetchAll,
    /// How many rows are taken before the stream is dropped; `None` for all.
    Stream(Option<usize>),
    Execute,
    Batch,
    Prepare,
    NeverPolled,
    FailsAtExecution,
    FailsAtPrepare,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    One(Use),
    Transaction(Vec<Use>, End),
    Joined(usize),
    Carried(Use),
    NotCarried,
}

/// Steps, each on the plain pool or on the metered one; whether a callback reports what a plain one
/// did as well.
pub(crate) type Program = Vec<(Step, bool, bool)>;

pub(crate) fn programs() -> impl Strategy<Value = Program> {
    let works = || {
        prop_oneof![
            Just(Use::FetchOne),
            Just(Use::FetchOptional),
            Just(Use::FetchAll),
            prop::option::of(0..8_usize).prop_map(Use::Stream),
            Just(Use::Execute),
            Just(Use::Batch),
            Just(Use::Prepare),
            Just(Use::NeverPolled),
        ]
    };
    let end = prop_oneof![Just(End::Commit), Just(End::Rollback), Just(End::Drop)];
    let step = prop_oneof![
        5 => works().prop_map(Step::One),
        1 => Just(Step::One(Use::FailsAtExecution)),
        1 => Just(Step::One(Use::FailsAtPrepare)),
        3 => (prop::collection::vec(works(), 0..4), end)
            .prop_map(|(uses, end)| Step::Transaction(uses, end)),
        1 => (2..4_usize).prop_map(Step::Joined),
        1 => works().prop_map(Step::Carried),
        1 => Just(Step::NotCarried),
    ];
    prop::collection::vec((step, any::<bool>(), any::<bool>()), 1..8)
}

/// What the program itself knows of what it did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) rows: u64,
    /// Statements that no metered connection has executed.
    pub(crate) plain: u64,
    /// Statements that are counted and that the server does not show.
    pub(crate) unseen: u64,
    /// Statements that the server shows and that are not counted.
    pub(crate) uncounted: u64,
    /// Transactions on metered connections; those on plain ones are not counted.
    pub(crate) transactions: u64,
}
