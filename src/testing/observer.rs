//! Sees statements that no metered connection counts, while work is measured.
//!
//! The subscriber that is there already goes on as before behind this one. sqlx tells of each statement by
//! an event: PostgreSQL and MySQL in the task of the caller, SQLite on a thread of its driver, which
//! enters the span that was current where the statement was handed over. So this subscriber answers
//! the question for the current span with a ticket: whose work, and where. Who asks cannot be told in a
//! program that is optimised or stripped: there everybody gets one, and it is nearly as good as the span.
//!
//! sqlx asks for each statement, and makes no event where its logging is switched off: a ticket that was
//! used without any event shows that.

use std::cell::Cell;
use std::sync::{Arc, LazyLock, OnceLock};

use tracing::callsite::DefaultCallsite;
use tracing::dispatcher::{self, WeakDispatch, set_default};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

use super::site::{self, Asker};
use super::tickets::{self, Ticket, Tickets};
use crate::db::SqlxEvents;
use crate::db::events::Executed;
use crate::db::witness::{self, Statement};
use crate::memory;
use crate::meter::Meter;
use crate::meter::observed::Observation;
use crate::meter::recording::{self, Kind, Site};
use crate::meter::table::By;
use crate::scope;

/// The default subscriber of measured work, around the one that was there.
#[derive(Debug)]
pub(super) struct Observer {
    inner: Dispatch,
    /// A `SqlxEvents` is part of the subscriber that was there: what it counts is no bypass.
    counts: bool,
    tickets: Arc<Tickets>,
    this: OnceLock<WeakDispatch>,
}

/// Never the default anywhere, and never dropped.
///
/// Where only one subscriber exists, `tracing` asks the default of the thread that comes to an event first whether
/// anybody is interested, and keeps the answer for all threads: none, if that is a test beside the measured one.
/// Where there are two it asks each.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Second));

thread_local! {
    /// The subscriber that comes into being here is one of a measurement.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

struct Second;

impl Subscriber for Second {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target() {
            // Whoever is the default at the time is to be asked.
            witness::TARGET => Interest::sometimes(),
            _ => Interest::never(),
        }
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Stands for the span of a ticket where there is no other.
static UNNAMED: DefaultCallsite = DefaultCallsite::new(&UNNAMED_METADATA);
static UNNAMED_METADATA: Metadata<'static> = tracing_core::metadata! {
    name: "statement",
    target: "request_budget",
    level: Level::TRACE,
    fields: &[],
    callsite: &UNNAMED,
    kind: tracing_core::Kind::SPAN,
};

impl Observer {
    /// An observer around the default subscriber of this thread.
    pub(super) fn subscriber() -> (Dispatch, Arc<Tickets>) {
        LazyLock::force(&SECOND);
        let tickets = Arc::new(Tickets::default());
        let inner = dispatcher::get_default(Dispatch::clone);
        let counts = Self::counts(&inner);
        let observer = Self { inner, counts, tickets: tickets.clone(), this: OnceLock::new() };
        let before = IS_OURS.replace(true);
        let dispatch = Dispatch::new(observer);
        IS_OURS.set(before);
        (dispatch, tickets)
    }

    /// Whether the default subscriber here is the one of a measurement.
    pub(super) fn is_in_place() -> bool {
        dispatcher::get_default(|default| default.is::<Self>())
    }

    /// Whether this subscriber, or the one around which it is an observer, counts statements.
    fn counts(subscriber: &Dispatch) -> bool {
        subscriber.downcast_ref::<Self>().is_some_and(|outer| outer.counts)
            || subscriber.downcast_ref::<SqlxEvents>().is_some_and(SqlxEvents::counts)
    }

    /// The span of the inner subscriber that this one stands for; `None` where there is none.
    fn inner_span(&self, id: &Id) -> Option<Id> {
        match self.tickets.get(id) {
            Some(ticket) => ticket.span,
            None => Some(id.clone()),
        }
    }
}

impl Subscriber for Observer {
    fn on_register_dispatch(&self, this: &Dispatch) {
        self.this.get_or_init(|| this.downgrade());
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target() {
            witness::TARGET => Interest::always(),
            _ => self.inner.register_callsite(metadata),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == witness::TARGET || self.inner.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Asked when another subscriber comes into being. In measured work that is to be its default.
        if !IS_OURS.get()
            && let Some(meter) = scope::current()
        {
            meter.recordings().for_each(|recording| recording.note_mask());
        }
        // At which level sqlx logs statements is up to each pool, so all are wanted.
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let parent = attributes.parent().and_then(|parent| Some(self.tickets.get(parent)?.span));
        match parent {
            None => self.inner.new_span(attributes),
            Some(Some(parent)) => {
                let (metadata, values) = (attributes.metadata(), attributes.values());
                self.inner.new_span(&Attributes::child_of(parent, metadata, values))
            }
            Some(None) => {
                let (metadata, values) = (attributes.metadata(), attributes.values());
                self.inner.new_span(&Attributes::new_root(metadata, values))
            }
        }
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        if let Some(id) = self.inner_span(id) {
            self.inner.record(&id, values);
        }
    }

    fn record_follows_from(&self, id: &Id, follows: &Id) {
        if let (Some(id), Some(follows)) = (self.inner_span(id), self.inner_span(follows)) {
            self.inner.record_follows_from(&id, &follows);
        }
    }

    fn event_enabled(&self, _: &Event<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        memory::aside(|| {
            if event.metadata().target() == witness::TARGET {
                tickets::note_event();
            }
            // What an inner measurement has seen is charged to the outer one already.
            let is_new = !witness::is_seen();
            let is_unmetered = match self.counts {
                true => Executed::of(event).is_some_and(|executed| count(&executed, is_new)),
                false => Statement::executed(event).is_some_and(|it| compare(&it, is_new)),
            };
            if is_unmetered {
                self.tickets.note_logged();
            }
        });
        // What others are interested in they have been asked for before.
        if event.metadata().target() != witness::TARGET || self.inner.enabled(event.metadata()) {
            witness::seen(|| self.inner.event(event));
        }
    }

    fn enter(&self, id: &Id) {
        match memory::aside(|| self.tickets.enter(id)) {
            None => self.inner.enter(id),
            Some(ticket) => {
                if let Some(span) = &ticket.span {
                    self.inner.enter(span);
                }
                // Seen from the thread that has taken the statement over: here its events come up.
                if let Some(this) = self.this.get().and_then(WeakDispatch::upgrade) {
                    memory::aside(|| tickets::enter(id, ticket, set_default(&this)));
                }
            }
        }
    }

    fn exit(&self, id: &Id) {
        match memory::aside(|| tickets::exit(id)) {
            None => self.inner.exit(id),
            Some(ticket) => {
                if let Some(span) = &ticket.span {
                    self.inner.exit(span);
                }
                memory::aside(|| self.tickets.exit(id));
            }
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if self.tickets.hold(id) { id.clone() } else { self.inner.clone_span(id) }
    }

    fn try_close(&self, id: Id) -> bool {
        match self.tickets.close(&id) {
            None => self.inner.try_close(id),
            Some(closed) => {
                let is_last = closed.is_some();
                if let Some(span) = closed.and_then(|ticket| ticket.span) {
                    self.inner.try_close(span);
                }
                is_last
            }
        }
    }

    fn current_span(&self) -> Current {
        let inner = self.inner.current_span();
        if recording::asks_for_span() {
            return inner;
        }
        memory::aside(|| {
            let by = witness::by();
            let is_metered = by.is_metered();
            // In a task that carries the span of the work along, and not the work.
            let carried = || tickets::entered().filter(|_| !is_metered).map(|ticket| ticket.meter);
            let Some(meter) = scope::current().or_else(carried) else { return inner };
            // What sqlx does for a metered connection needs no place; the statement has it.
            let site = if is_metered { Site::default() } else { Site::capture() };
            if !is_metered && site::asker(&site) == Asker::Other {
                return inner;
            }
            let metadata = inner.metadata().unwrap_or(&UNNAMED_METADATA);
            // Held as long as the ticket is.
            let span = inner.id().map(|id| self.inner.clone_span(id));
            let by = if is_metered { by } else { By::Others };
            if self.counts && !is_metered {
                // The thread of a driver charges it, and may so cut it while it waits.
                meter.share();
            }
            Current::new(self.tickets.open(Ticket::new(span, meter, by, site)), metadata)
        })
    }
}

/// In which work a statement was executed, by whom, and where if that was noted beforehand.
///
/// None of a metered connection that is used in no work: that is no bypass.
fn whose() -> Option<(Arc<Meter>, By, Option<Site>)> {
    let ticket = tickets::entered();
    let (current, here) = (scope::current(), witness::by());
    match (current, ticket) {
        // Statements of PostgreSQL and MySQL come up in the work itself.
        (Some(meter), ticket) => {
            let theirs = ticket.map(|ticket| ticket.by).filter(|by| by.is_metered());
            let by = if here.is_metered() { here } else { theirs.unwrap_or(By::Anyone) };
            Some((meter, by, None))
        }
        // A metered connection that is used in no work is no bypass.
        (None, Some(_)) if here.is_metered() => None,
        (None, Some(ticket)) => Some((ticket.meter, ticket.by, Some(ticket.site))),
        (None, None) => None,
    }
}

/// Compares a statement that was executed with what was counted, unless that was done before; whether it is
/// of a connection that is not metered.
fn compare(statement: &Statement, is_new: bool) -> bool {
    let Some((meter, by, site)) = whose() else { return false };
    if is_new && statement.compare(&meter, by) {
        let site = || site.unwrap_or_else(Site::capture);
        meter.record_in_all(Kind::Unmetered, Some(statement.text()), site);
    }
    !by.is_metered()
}

/// Counts a statement that was executed, unless that was done before; whether it is of a connection that is
/// not metered.
fn count(executed: &Executed, is_new: bool) -> bool {
    let Some((meter, by, site)) = whose() else { return false };
    let is_metered = by.is_metered();
    if is_new && !is_metered {
        let Observation { text, rows, time, .. } = executed.observation();
        if meter.observe(&executed.observation()) {
            let site = || site.unwrap_or_else(Site::capture);
            let recorded = meter.record_in_all(Kind::Observed, Some(text), site);
            recorded.add_rows(rows);
            recorded.add_time(time);
        }
    }
    !is_metered
}
