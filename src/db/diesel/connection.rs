//! What one connection executes, as its events report it.

use std::mem;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::diesel::connection::{DebugQuery, InstrumentationEvent};

use super::text;
use crate::key::Key;
use crate::memory;
use crate::meter::Meter;
use crate::meter::recording::{self, Kind, Recorded};
use crate::report::elsewhere::note_unattributed;
use crate::scope;

/// The ends of more statements than these are not waited for: the oldest were given up.
const MOST_IN_FLIGHT: usize = 256;
/// Room for a longer text is not kept.
const LONGEST_TEXT: usize = 16 << 10;

/// The statements that are in flight on one connection.
///
/// A statement is counted when it begins: where its future is dropped no end is reported.
/// Statements that are pipelined overlap, and end in any order.
#[derive(Default)]
pub(super) struct ConnectionState {
    in_flight: Vec<BegunStatement>,
    /// The next statement is transaction control.
    control: Option<Recorded>,
    is_set_up: bool,
    is_establishing: bool,
    text: String,
}

/// A statement that has begun.
struct BegunStatement {
    key: Key,
    owner: Owner,
}

/// Who has executed it.
enum Owner {
    /// A unit of work, which knows it by this number.
    Work(Weak<Meter>, u64),
    /// None.
    Nobody(Recorded),
    /// It is not counted.
    Uncounted,
}

impl ConnectionState {
    /// Charges what an event reports.
    pub(super) fn observe(&mut self, event: &InstrumentationEvent<'_>) {
        memory::aside(|| match event {
            InstrumentationEvent::StartEstablishConnection { .. } => self.is_establishing = true,
            InstrumentationEvent::FinishEstablishConnection { .. } => self.is_establishing = false,
            InstrumentationEvent::StartQuery { query, .. } => self.begin(*query),
            InstrumentationEvent::FinishQuery { query, .. } => self.end(*query),
            InstrumentationEvent::BeginTransaction { .. } => {
                let meter = scope::current();
                let recorded = meter.map(|meter| meter.count_observed_transaction());
                self.control(recorded.unwrap_or_default());
            }
            InstrumentationEvent::CommitTransaction { .. }
            | InstrumentationEvent::RollbackTransaction { .. } => self.control(Recorded::default()),
            _ => {}
        });
    }

    /// Notes that transaction control comes next. It needs the connection for itself, so whatever
    /// was in flight was given up.
    fn control(&mut self, recorded: Recorded) {
        self.in_flight.clear();
        self.control = Some(recorded);
    }

    fn begin(&mut self, query: &dyn DebugQuery) {
        text::read(query, &mut self.text);
        self.in_flight.iter().for_each(BegunStatement::doubt);
        self.in_flight.retain(BegunStatement::may_end);
        if self.in_flight.len() >= MOST_IN_FLIGHT {
            self.in_flight.remove(0);
        }
        let owner = self.charge();
        self.in_flight.push(BegunStatement { key: Key::of(&self.text), owner });
        if self.text.capacity() > LONGEST_TEXT {
            self.text = String::new();
        }
    }

    /// Charges the statement of this text, which begins here and now.
    fn charge(&mut self) -> Owner {
        let text = &*self.text;
        let control = self.control.take();
        let is_control = control.is_some() || text::is_control(text);
        let is_setup = self.is_establishing || (!self.is_set_up && text::is_setup(text));
        if is_setup || text.is_empty() {
            return Owner::Uncounted;
        }
        self.is_set_up = true;
        match scope::current() {
            Some(meter) => {
                let id = match is_control {
                    true => Some(meter.begin_observed_control(control.unwrap_or_default())),
                    false => meter.begin_observed(text),
                };
                id.map_or(Owner::Uncounted, |id| Owner::Work(Arc::downgrade(&meter), id))
            }
            None if is_control => Owner::Uncounted,
            None => {
                note_unattributed();
                let recorded = recording::record_elsewhere(Kind::Observed, Some(text));
                recorded.open();
                Owner::Nobody(recorded)
            }
        }
    }

    fn end(&mut self, query: &dyn DebugQuery) {
        let position = match self.in_flight.len() {
            0 => None,
            1 => Some(0),
            _ => {
                text::read(query, &mut self.text);
                let key = Key::of(&self.text);
                self.in_flight.iter().position(|statement| statement.key == key)
            }
        };
        if let Some(position) = position {
            self.in_flight.remove(position).end();
        }
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        memory::aside(|| drop(mem::take(&mut self.text)));
        memory::aside(|| drop(mem::take(&mut self.in_flight)));
    }
}

impl BegunStatement {
    /// Notes that another one has begun, so this one may have been given up.
    fn doubt(&self) {
        if let Owner::Work(meter, id) = &self.owner
            && let Some(meter) = meter.upgrade()
        {
            meter.doubt_observed(*id);
        }
    }

    /// Whether there is anything to charge at its end.
    fn may_end(&self) -> bool {
        match &self.owner {
            Owner::Work(meter, _) => meter.strong_count() > 0,
            Owner::Nobody(_) | Owner::Uncounted => true,
        }
    }

    fn end(mut self) {
        match mem::replace(&mut self.owner, Owner::Uncounted) {
            Owner::Work(meter, id) => {
                if let Some(meter) = meter.upgrade() {
                    meter.end_observed(id);
                }
            }
            // Nothing is charged, so the time is not needed.
            Owner::Nobody(recorded) => recorded.add_time(Duration::ZERO),
            Owner::Uncounted => {}
        }
    }
}

/// What was given up was counted, and has no time.
impl Drop for BegunStatement {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Work(meter, id) => {
                if let Some(meter) = meter.upgrade() {
                    meter.give_up_observed(*id);
                }
            }
            Owner::Nobody(recorded) => recorded.add_time(Duration::ZERO),
            Owner::Uncounted => {}
        }
    }
}
