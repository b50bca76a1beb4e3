//! Finds the statements that no metered connection counts, while work is measured.
//!
//! The default subscriber that was installed before still receives everything, through this one.
//! sqlx emits an event for each statement: PostgreSQL and MySQL in the task of the caller, SQLite
//! on a thread of its driver, which enters the span that was current when the statement was sent to
//! it. So this subscriber returns a ticket as the current span, which names the work and the place.
//! In a program that is optimised or stripped it cannot be told who asks for the current span;
//! there everyone gets a ticket, which stands for the span in nearly everything.
//!
//! sqlx asks for the current span for each statement, and emits no event if its logging is switched
//! off: a ticket that was used without an event reveals that.

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

/// The default subscriber of measured work, around the one that was installed before.
#[derive(Debug)]
pub(super) struct Observer {
    inner: Dispatch,
    /// Whether a `SqlxEvents` is part of the inner subscriber; what it counts is not unmetered.
    counts: bool,
    tickets: Arc<Tickets>,
    this: OnceLock<WeakDispatch>,
}

/// A second subscriber, which is never the default and never dropped.
///
/// While only one subscriber exists, `tracing` asks the default subscriber of the thread that
/// reaches an event first whether it is interested, and caches the answer for all threads. If that
/// thread runs another test, which has no subscriber, the measured test would receive no event.
/// While there are two subscribers it asks both.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Second));

thread_local! {
    /// Whether the subscriber that this thread is creating belongs to a measurement.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

struct Second;

impl Subscriber for Second {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target() {
            // So that the default subscriber at the time of the event decides.
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

/// The metadata of a ticket that is issued outside of every span.
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
    /// Creates an observer around the default subscriber of this thread.
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

    /// Whether the default subscriber of this thread belongs to a measurement.
    pub(super) fn is_in_place() -> bool {
        dispatcher::get_default(|default| default.is::<Self>())
    }

    /// Whether this subscriber, or the one inside it, counts statements.
    fn counts(subscriber: &Dispatch) -> bool {
        subscriber.downcast_ref::<Self>().is_some_and(|outer| outer.counts)
            || subscriber.downcast_ref::<SqlxEvents>().is_some_and(SqlxEvents::counts)
    }

    /// The span of the inner subscriber for which a ticket stands; `None` if there is none.
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
        // Called when another subscriber is created, which measured work does to make it the
        // default.
        if !IS_OURS.get()
            && let Some(meter) = scope::current()
        {
            meter.recordings().for_each(|recording| recording.note_mask());
        }
        // Each pool chooses the level at which it logs statements.
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
            // What an inner measurement has received is already charged to the outer one.
            let is_new = !witness::is_seen();
            let is_unmetered = match self.counts {
                true => Executed::of(event).is_some_and(|executed| count(&executed, is_new)),
                false => Statement::executed(event).is_some_and(|it| compare(&it, is_new)),
            };
            if is_unmetered {
                self.tickets.note_logged();
            }
        });
        // The inner subscriber has been asked before.
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
                // This is the thread that executes the statement, and that emits its event.
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
            // A task that was spawned with the span of the work but without `in_current_budget`.
            let carried = || tickets::entered().filter(|_| !is_metered).map(|ticket| ticket.meter);
            let Some(meter) = scope::current().or_else(carried) else { return inner };
            // A statement of a metered connection has recorded its place itself.
            let site = if is_metered { Site::default() } else { Site::capture() };
            if !is_metered && site::asker(&site) == Asker::Other {
                return inner;
            }
            let metadata = inner.metadata().unwrap_or(&UNNAMED_METADATA);
            // The inner span lives as long as the ticket.
            let span = inner.id().map(|id| self.inner.clone_span(id));
            let by = if is_metered { by } else { By::Others };
            if self.counts && !is_metered {
                // The thread of a driver charges the work, which may cut it while it is waiting.
                meter.share();
            }
            Current::new(self.tickets.open(Ticket::new(span, meter, by, site)), metadata)
        })
    }
}

/// The work that executed a statement, the kind of connection, and the place if a ticket has noted
/// that.
///
/// `None` for a metered connection outside of all work, which is not unmetered.
fn whose() -> Option<(Arc<Meter>, By, Option<Site>)> {
    let ticket = tickets::entered();
    let (current, here) = (scope::current(), witness::by());
    match (current, ticket) {
        // PostgreSQL and MySQL emit events in the work itself.
        (Some(meter), ticket) => {
            let theirs = ticket.map(|ticket| ticket.by).filter(|by| by.is_metered());
            let by = if here.is_metered() { here } else { theirs.unwrap_or(By::Anyone) };
            Some((meter, by, None))
        }
        // A metered connection outside of all work is not unmetered.
        (None, Some(_)) if here.is_metered() => None,
        (None, Some(ticket)) => Some((ticket.meter, ticket.by, Some(ticket.site))),
        (None, None) => None,
    }
}

/// Compares an executed statement with what was counted, unless that was done before; returns
/// whether the connection is unmetered.
fn compare(statement: &Statement, is_new: bool) -> bool {
    let Some((meter, by, site)) = whose() else { return false };
    if is_new && statement.compare(&meter, by) {
        let site = || site.unwrap_or_else(Site::capture);
        meter.record_in_all(Kind::Unmetered, Some(statement.text()), site);
    }
    !by.is_metered()
}

/// Counts an executed statement, unless that was done before; returns whether the connection is
/// unmetered.
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
