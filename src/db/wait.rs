//! Waits that are not statements: for a connection, and for a transaction to begin or to end.

use std::sync::Arc;

use crate::error::Cut;
use crate::meter::recording::{Kind, Recorded};
use crate::meter::{Meter, Suspect};
use crate::resource::Resource;
use crate::scope;
use crate::time::{Instant, nanos};

/// A wait for a connection, until dropped.
pub(crate) struct ConnectionWait(Wait);

impl ConnectionWait {
    pub(crate) fn start() -> Self {
        Self(Wait::start(scope::current()))
    }
}

impl Drop for ConnectionWait {
    fn drop(&mut self) {
        let time = nanos(self.0.since.elapsed());
        let charge = |meter: &Meter| meter.add(Resource::ConnectionWait, time, Suspect::Nobody);
        self.0.chain().for_each(charge);
    }
}

/// A wait for `BEGIN`, `COMMIT`, `ROLLBACK` or a savepoint, until dropped.
pub(crate) struct TransactionWait(Wait, Recorded);

impl TransactionWait {
    /// Counts a transaction that is about to begin, or a savepoint.
    pub(crate) fn begin() -> Result<Self, Cut> {
        let wait = Wait::start(scope::current());
        let resource = Resource::Transactions;
        if let Some(meter) = &wait.meter {
            meter.take(resource, Suspect::Nobody)?;
        }
        wait.chain().for_each(|meter| meter.check_taken(resource, Suspect::Nobody));
        let record = |meter: &Arc<Meter>| meter.record(Kind::Transaction, Some("BEGIN"));
        let recorded = wait.meter.as_ref().map(record).unwrap_or_default();
        Ok(Self(wait, recorded))
    }

    /// Whether the work that waits for it is being ended from outside.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.meter.as_ref().is_some_and(|meter| meter.is_abandoned())
    }

    /// Asks whether the work has got all that it asked for.
    pub(crate) fn may_commit() -> Result<(), Cut> {
        let meter = scope::current();
        let refused = meter.iter().flat_map(|meter| meter.chain()).find(|meter| meter.is_refused());
        refused.and_then(Meter::cut).map_or(Ok(()), |cut| Err(cut.clone()))
    }

    /// Waits for a transaction, counted before, to end.
    pub(crate) fn end() -> Self {
        Self(Wait::start(scope::current()), Recorded::default())
    }
}

impl Drop for TransactionWait {
    fn drop(&mut self) {
        let time = self.0.since.elapsed();
        self.0.chain().for_each(|meter| meter.add_statement_time(None, time));
        self.1.add_time(time);
    }
}

/// Something that is not counted and not timed, but that the work may be ended in the middle of.
pub(crate) struct Uncounted(Option<Arc<Meter>>);

impl Uncounted {
    pub(crate) fn start() -> Self {
        Self(scope::current())
    }

    /// Whether the work that waits for it is being ended from outside.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_some_and(|meter| meter.is_abandoned())
    }
}

struct Wait {
    meter: Option<Arc<Meter>>,
    since: Instant,
}

impl Wait {
    fn start(meter: Option<Arc<Meter>>) -> Self {
        Self { meter, since: Instant::now() }
    }

    fn chain(&self) -> impl Iterator<Item = &Meter> {
        self.meter.iter().flat_map(|meter| meter.chain())
    }
}
