//! Observed statements in flight, whose begin and end are reported separately.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::observed::{Observation, ReportedBy};
use super::recording::{Kind, Recorded};
use super::table::Key;
use super::waits::WaitFor;
use super::{Meter, Suspect};
use crate::memory;
use crate::resource::Resource;
use crate::scope;
use crate::time::Instant;

/// The statements of one unit of work that have begun and whose end was not reported yet.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<InFlight>);

#[derive(Debug, Default)]
struct InFlight {
    last_id: u64,
    statements: Vec<Begun>,
}

#[derive(Debug)]
struct Begun {
    id: u64,
    /// `None` for transaction control.
    key: Option<Key>,
    since: Instant,
    /// The work waits for it, as far as is known: it is the newest on its connection.
    is_awaited: bool,
    recorded: Recorded,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, InFlight> {
        // No access panics midway, so what is poisoned is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes one; the caller charges it.
    fn take(&self, id: u64) -> Option<Begun> {
        let statements = &mut self.lock().statements;
        let position = statements.iter().position(|statement| statement.id == id)?;
        Some(statements.swap_remove(position))
    }
}

impl Meter {
    /// Counts a statement that begins now. Returns the number by which its end is to be reported,
    /// or `None` if a callback has reported it already.
    pub(crate) fn begin_observed(&self, text: &str) -> Option<u64> {
        let reporter = ReportedBy::Event;
        let begun = Observation { text, time: Duration::ZERO, rows: 0, reporter };
        if !self.observe(&begun) {
            return None;
        }
        Some(self.begin_pending(Some(Key::of(text)), self.record(Kind::Observed, Some(text))))
    }

    /// Counts a transaction, or a savepoint, that is about to begin.
    pub(crate) fn count_observed_transaction(&self) -> Recorded {
        for meter in self.chain() {
            meter.add(Resource::Transactions, 1, Suspect::Nobody);
        }
        self.record(Kind::Transaction, Some("BEGIN"))
    }

    /// Notes that transaction control begins now. Returns the number by which its end is to be
    /// reported.
    pub(crate) fn begin_observed_control(&self, recorded: Recorded) -> u64 {
        self.begin_pending(None, recorded)
    }

    fn begin_pending(&self, key: Option<Key>, recorded: Recorded) -> u64 {
        let since = Instant::now();
        recorded.open();
        let pending = scope::allocated_in_poll();
        for meter in self.chain() {
            match key {
                Some(key) => meter.begin_statement_wait(key, since, pending),
                None => meter.begin_other_wait(WaitFor::Transaction, since),
            }
        }
        memory::aside(|| {
            let mut all = self.rare().pending.lock();
            all.last_id = all.last_id.wrapping_add(1);
            let id = all.last_id;
            all.statements.push(Begun { id, key, since, is_awaited: true, recorded });
            id
        })
    }

    /// Charges the time of a statement that has ended.
    pub(crate) fn end_observed(&self, id: u64) {
        if let Some(begun) = self.rare().pending.take(id) {
            let time = begun.since.elapsed();
            self.charge_begun(begun, time);
        }
    }

    /// Notes that it is no longer known whether the work waits for this statement.
    pub(crate) fn doubt_observed(&self, id: u64) {
        let mut all = self.rare().pending.lock();
        if let Some(begun) = all.statements.iter_mut().find(|statement| statement.id == id) {
            self.end_wait(begun);
        }
    }

    /// Removes a statement whose end will not be reported. It is charged no time, since it is not
    /// known when it ended.
    pub(crate) fn give_up_observed(&self, id: u64) {
        if let Some(begun) = self.rare().pending.take(id) {
            self.charge_begun(begun, Duration::ZERO);
        }
    }

    /// Charges the statements that the work waits for at the moment at which it is ended from
    /// outside.
    pub(super) fn charge_pending(&self) {
        let Some(rare) = self.rare.get() else { return };
        let all = mem::take(&mut rare.pending.lock().statements);
        memory::aside(|| {
            for begun in all {
                let time = if begun.is_awaited { begun.since.elapsed() } else { Duration::ZERO };
                self.charge_begun(begun, time);
            }
        });
    }

    fn charge_begun(&self, mut begun: Begun, time: Duration) {
        self.end_wait(&mut begun);
        if !time.is_zero() {
            self.chain().for_each(|meter| meter.add_statement_time(begun.key, time));
        }
        begun.recorded.add_time(time);
    }

    fn end_wait(&self, begun: &mut Begun) {
        if !mem::take(&mut begun.is_awaited) {
            return;
        }
        let pending = scope::allocated_in_poll();
        for meter in self.chain() {
            match begun.key {
                Some(key) => meter.end_statement_wait(key, pending),
                None => meter.end_other_wait(WaitFor::Transaction, begun.since),
            }
        }
    }
}
