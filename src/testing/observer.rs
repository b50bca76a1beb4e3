//! Sees statements that no metered connection counts, while work is measured.
//!
//! The subscriber that is there already goes on as before behind this one. sqlx tells of each statement by
//! an event: PostgreSQL and MySQL in the task of the caller, SQLite on a thread of its driver, which
//! enters the span that was current where the statement was handed over. So this subscriber answers
//! the question for the current span, where it is sqlx that asks, with a ticket: whose work, and where.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::callsite::DefaultCallsite;
use tracing::dispatcher::{self, DefaultGuard, WeakDispatch, set_default};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

use super::site::{self, Asker};
use crate::db::witness::{self, Statement};
use crate::memory;
use crate::meter::Meter;
use crate::meter::recording::{self, Kind, Site};
use crate::meter::table::By;
use crate::scope;

/// The default subscriber of measured work, around the one that was there.
#[derive(Debug)]
pub(super) struct Observer {
    inner: Dispatch,
    tickets: Arc<Tickets>,
    this: OnceLock<WeakDispatch>,
}

/// Never the default anywhere, and never dropped.
///
/// Where only one subscriber exists, `tracing` asks the default of the thread that comes to an event first whether
/// anybody is interested, and keeps the answer for all threads: none, if that is a test beside the measured one.
/// Where there are two it asks each.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Second));

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

/// The statements that another thread may be working on.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    all: Mutex<HashMap<u64, Ticket>>,
    closed: Condvar,
    /// It could not be told who has asked for a span.
    is_blind: AtomicBool,
}

#[derive(Debug, Clone)]
struct Ticket {
    span: Option<Id>,
    meter: Arc<Meter>,
    by: By,
    site: Site,
    handles: usize,
}

thread_local! {
    /// The default subscribers that this one has put in place on a thread of a driver.
    static ENTERED: RefCell<Vec<(u64, Entered)>> = const { RefCell::new(Vec::new()) };
}

struct Entered {
    ticket: Ticket,
    subscriber: DefaultGuard,
}

impl Observer {
    /// An observer around the default subscriber of this thread.
    pub(super) fn subscriber() -> (Dispatch, Arc<Tickets>) {
        LazyLock::force(&SECOND);
        let tickets = Arc::new(Tickets::default());
        let inner = dispatcher::get_default(Dispatch::clone);
        let observer = Self { inner, tickets: tickets.clone(), this: OnceLock::new() };
        (Dispatch::new(observer), tickets)
    }

    /// The span of the inner subscriber that this one stands for; `None` where there is none.
    fn inner_span(&self, id: &Id) -> Option<Id> {
        match self.tickets.lock().get(&id.into_u64()) {
            Some(ticket) => ticket.span.clone(),
            None => Some(id.clone()),
        }
    }

    fn ticket(&self, id: &Id) -> Option<Ticket> {
        self.tickets.lock().get(&id.into_u64()).cloned()
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
        // The highest that any subscriber of the process wants: that of the inner one cannot be asked.
        Some(LevelFilter::current().max(LevelFilter::DEBUG))
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let parent = attributes.parent().and_then(|parent| Some(self.ticket(parent)?.span));
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
            // What an inner measurement has seen is charged to the outer one already.
            if !witness::is_seen()
                && let Some(statement) = Statement::executed(event)
            {
                look(&statement);
            }
        });
        // What others are interested in they have been asked for before.
        if event.metadata().target() != witness::TARGET || self.inner.enabled(event.metadata()) {
            witness::seen(|| self.inner.event(event));
        }
    }

    fn enter(&self, id: &Id) {
        match self.ticket(id) {
            None => self.inner.enter(id),
            Some(ticket) => {
                if let Some(span) = &ticket.span {
                    self.inner.enter(span);
                }
                // Seen from the thread that has taken the statement over: here its events come up.
                if let Some(this) = self.this.get().and_then(WeakDispatch::upgrade) {
                    let entered = Entered { ticket, subscriber: set_default(&this) };
                    ENTERED.with_borrow_mut(|all| all.push((id.into_u64(), entered)));
                }
            }
        }
    }

    fn exit(&self, id: &Id) {
        let number = id.into_u64();
        let entered = ENTERED.with_borrow_mut(|all| {
            let position = all.iter().rposition(|(other, _)| *other == number)?;
            Some(all.remove(position).1)
        });
        match entered {
            None => self.inner.exit(id),
            Some(Entered { ticket, subscriber }) => {
                // Put in place last, so taken away first.
                drop(subscriber);
                if let Some(span) = &ticket.span {
                    self.inner.exit(span);
                }
            }
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(ticket) = self.tickets.lock().get_mut(&id.into_u64()) {
            ticket.handles = ticket.handles.saturating_add(1);
            return id.clone();
        }
        self.inner.clone_span(id)
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
        let Some(meter) = scope::current() else { return inner };
        if recording::asks_for_span() {
            return inner;
        }
        memory::aside(|| {
            let is_metered = witness::by() == By::MeteredDriver;
            // What sqlx does for a metered connection needs no place; the statement has it.
            let site = if is_metered { Site::default() } else { Site::capture() };
            if !is_metered {
                match site::asker(&site) {
                    Asker::SqliteDriver => {}
                    Asker::Other => return inner,
                    Asker::Unknown => {
                        self.tickets.is_blind.store(true, Relaxed);
                        return inner;
                    }
                }
            }
            let metadata = inner.metadata().unwrap_or(&UNNAMED_METADATA);
            // Held as long as the ticket is.
            let span = inner.id().map(|id| self.inner.clone_span(id));
            // Nobody else hands a statement over here.
            let by = if is_metered { By::MeteredDriver } else { By::Others };
            let ticket = Ticket { span, meter, by, site, handles: 0 };
            Current::new(self.tickets.open(ticket), metadata)
        })
    }
}

/// Compares a statement that was executed with what was counted.
fn look(statement: &Statement) {
    let ticket = ENTERED.with_borrow(|all| all.last().map(|(_, entered)| entered.ticket.clone()));
    let unmetered = |meter: &Meter, by, site: Site| {
        if statement.compare(meter, by) {
            meter.record_in_all(Kind::Unmetered, Some(statement.text()), || site);
        }
    };
    if let Some(ticket) = ticket {
        unmetered(&ticket.meter, ticket.by, ticket.site.clone());
    } else if let Some(meter) = scope::current() {
        unmetered(&meter, witness::by(), Site::capture());
    }
}

impl Tickets {
    /// Until when to wait for a thread of a driver: it may be busy with a statement that was given up.
    const PATIENCE: Duration = Duration::from_secs(2);

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Ticket>> {
        // No access panics half way, so a poisoned map is whole.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there may have been statements that were not seen, of which the program does not say enough.
    pub(super) fn is_blind(&self) -> bool {
        self.is_blind.load(Relaxed)
    }

    fn open(&self, ticket: Ticket) -> Id {
        // Far from what any registry hands out.
        static NEXT: AtomicU64 = AtomicU64::new(0x7b5d_9e31_0000_0001);
        let number = NEXT.fetch_add(1, Relaxed);
        self.lock().insert(number, ticket);
        Id::from_u64(number)
    }

    /// Gives one handle back: `None` if it is no ticket's, `Some(Some(..))` if it was the last.
    fn close(&self, id: &Id) -> Option<Option<Ticket>> {
        let mut all = self.lock();
        let number = id.into_u64();
        let ticket = all.get_mut(&number)?;
        ticket.handles = ticket.handles.saturating_sub(1);
        let last = if ticket.handles == 0 { all.remove(&number) } else { None };
        drop(all);
        self.closed.notify_all();
        Some(last)
    }

    /// Waits until the threads of the drivers are done with what this work has handed them.
    ///
    /// They need nothing of this thread for it. By the real clock, since a paused one does not move them.
    pub(super) fn settle(&self) {
        let is_out = |all: &mut HashMap<u64, Ticket>| all.values().any(|ticket| ticket.handles > 0);
        let waited = self.closed.wait_timeout_while(self.lock(), Self::PATIENCE, is_out);
        drop(waited);
    }
}
