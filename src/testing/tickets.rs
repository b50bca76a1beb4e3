//! The tickets of an `Observer`: they attribute what another thread, or a later poll, executes to
//! its work.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::dispatcher::DefaultGuard;
use tracing::span::Id;

use super::site::{self, Asker, Command};
use crate::meter::Meter;
use crate::meter::recording::Site;
use crate::meter::table::By;

/// The tickets that one observer has issued in place of the current span.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    all: Mutex<HashMap<u64, Ticket>>,
    changed: Condvar,
    /// The tickets that were entered, and closed without an event of sqlx.
    silent: Mutex<Vec<Silent>>,
    /// Whether an event of an unmetered connection was received.
    has_logged: AtomicBool,
}

#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) span: Option<Id>,
    pub(super) meter: Arc<Meter>,
    pub(super) by: By,
    pub(super) site: Site,
    /// Whether an event of sqlx was emitted in it.
    is_logged: Arc<AtomicBool>,
    handles: usize,
    /// How many threads have entered it.
    entered: usize,
    entered_by: Option<EnteredBy>,
}

/// Who entered a ticket first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EnteredBy {
    /// The thread that the SQLite driver runs for a connection.
    SqliteThread,
    Other,
}

#[derive(Debug)]
struct Silent {
    site: Site,
    by: By,
    entered_by: EnteredBy,
}

/// What unmetered connections executed without an event of sqlx.
#[derive(Debug, Default)]
pub(super) struct Unlogged {
    /// The places, one for each statement.
    pub(super) statements: Vec<Site>,
    /// Something was executed, but the symbols of the program do not show what it was.
    pub(super) is_vague: bool,
}

/// A ticket that is entered on this thread.
struct Entered {
    ticket: Ticket,
    _subscriber: DefaultGuard,
}

thread_local! {
    static ENTERED: RefCell<Vec<(u64, Entered)>> = const { RefCell::new(Vec::new()) };
}

/// The ticket that this thread entered last.
pub(super) fn entered() -> Option<Ticket> {
    ENTERED.with_borrow(|all| all.last().map(|(_, entered)| entered.ticket.clone()))
}

/// Notes that this thread has emitted an event of sqlx.
pub(super) fn note_event() {
    ENTERED.with_borrow(|all| {
        for (_, entered) in all {
            entered.ticket.is_logged.store(true, Relaxed);
        }
    });
}

/// Notes a ticket as entered on this thread, together with the default subscriber that was set for
/// it.
pub(super) fn enter(id: &Id, ticket: Ticket, subscriber: DefaultGuard) {
    let entered = Entered { ticket, _subscriber: subscriber };
    ENTERED.with_borrow_mut(|all| all.push((id.into_u64(), entered)));
}

/// Removes the ticket that this thread entered, and its subscriber.
pub(super) fn exit(id: &Id) -> Option<Ticket> {
    let number = id.into_u64();
    let entered = ENTERED.with_borrow_mut(|all| {
        let position = all.iter().rposition(|(other, _)| *other == number)?;
        Some(all.remove(position).1)
    })?;
    Some(entered.ticket)
}

impl Ticket {
    pub(super) fn new(span: Option<Id>, meter: Arc<Meter>, by: By, site: Site) -> Self {
        let is_logged = Arc::default();
        Self { span, meter, by, site, is_logged, handles: 0, entered: 0, entered_by: None }
    }

    /// The ticket, if it was entered at some time and no event was emitted in it.
    fn silent(&self) -> Option<Silent> {
        let entered_by = self.entered_by.filter(|_| !self.is_logged.load(Relaxed))?;
        Some(Silent { site: self.site.clone(), by: self.by, entered_by })
    }

    /// Whether a command that was sent with it has yet to be executed.
    fn is_out(&self) -> bool {
        let is_waiting = || self.handles > 0 && self.entered_by.is_none();
        // Others that called `Span::current` may keep the span for as long as they like.
        let is_drivers = || match self.by {
            By::MeteredDriver | By::Itself => true,
            _ => matches!(site::asker(&self.site), Asker::SqliteDriver(_)),
        };
        self.entered > 0 || (is_waiting() && is_drivers())
    }
}

impl Tickets {
    /// How long to wait for a thread of a driver, which may be busy with a statement that was
    /// cancelled.
    const PATIENCE: Duration = Duration::from_secs(2);

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Ticket>> {
        // No access panics midway, so a poisoned map is consistent.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &Id) -> Option<Ticket> {
        self.lock().get(&id.into_u64()).cloned()
    }

    /// Notes that an unmetered connection has emitted an event of a statement.
    pub(super) fn note_logged(&self) {
        self.has_logged.store(true, Relaxed);
    }

    pub(super) fn open(&self, ticket: Ticket) -> Id {
        // A range that no registry uses for its own spans.
        static NEXT: AtomicU64 = AtomicU64::new(0x7b5d_9e31_0000_0001);
        let number = NEXT.fetch_add(1, Relaxed);
        self.lock().insert(number, ticket);
        Id::from_u64(number)
    }

    /// Adds a handle; returns whether the id is that of a ticket.
    pub(super) fn hold(&self, id: &Id) -> bool {
        let mut all = self.lock();
        let Some(ticket) = all.get_mut(&id.into_u64()) else { return false };
        ticket.handles = ticket.handles.saturating_add(1);
        true
    }

    /// Notes that it is entered; returns the ticket, if the id is that of one.
    pub(super) fn enter(&self, id: &Id) -> Option<Ticket> {
        let mut all = self.lock();
        let ticket = all.get_mut(&id.into_u64())?;
        ticket.entered = ticket.entered.saturating_add(1);
        ticket.entered_by.get_or_insert_with(EnteredBy::here);
        Some(ticket.clone())
    }

    pub(super) fn exit(&self, id: &Id) {
        if let Some(ticket) = self.lock().get_mut(&id.into_u64()) {
            ticket.entered = ticket.entered.saturating_sub(1);
        }
        self.changed.notify_all();
    }

    /// Removes a handle: `None` if the id is not that of a ticket, `Some(Some(..))` if this was its
    /// last handle.
    pub(super) fn close(&self, id: &Id) -> Option<Option<Ticket>> {
        let mut all = self.lock();
        let number = id.into_u64();
        let ticket = all.get_mut(&number)?;
        ticket.handles = ticket.handles.saturating_sub(1);
        let last = if ticket.handles == 0 { all.remove(&number) } else { None };
        let silent = last.as_ref().and_then(Ticket::silent);
        if let Some(silent) = silent.filter(|silent| !silent.by.is_metered()) {
            self.silent.lock().unwrap_or_else(PoisonError::into_inner).push(silent);
        }
        drop(all);
        self.changed.notify_all();
        Some(last)
    }

    /// Waits until the threads of the drivers have executed what this work has sent them.
    ///
    /// They do not need this thread for that. The wait uses the real clock, since these threads do
    /// not run on tokio's, which may be paused.
    pub(super) fn settle(&self) {
        let is_out = |all: &mut HashMap<u64, Ticket>| all.values().any(Ticket::is_out);
        let waited = self.changed.wait_timeout_while(self.lock(), Self::PATIENCE, is_out);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What was executed on unmetered connections without an event of sqlx.
    pub(super) fn unlogged(&self) -> Unlogged {
        let mut unlogged = Unlogged::default();
        let open = self.lock().values().filter_map(Ticket::silent).collect::<Vec<_>>();
        let closed = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let others = open.iter().filter(|silent| !silent.by.is_metered());
        for silent in closed.iter().chain(others) {
            let (Asker::SqliteDriver(command) | Asker::OtherDriver(command)) =
                site::asker(&silent.site)
            else {
                // Such a thread enters only the spans of commands that were sent to it.
                unlogged.is_vague |= silent.entered_by == EnteredBy::SqliteThread;
                continue;
            };
            match command {
                Command::Statement => unlogged.statements.push(silent.site.clone()),
                Command::Control => {}
                Command::Unknown => unlogged.is_vague = true,
            }
        }
        // Not every command emits an event, but a connection whose statements do is not silent.
        unlogged.is_vague &= !self.has_logged.load(Relaxed);
        unlogged
    }
}

impl EnteredBy {
    fn here() -> Self {
        let thread = std::thread::current();
        match thread.name().is_some_and(|name| name.starts_with("sqlx-sqlite-worker")) {
            true => Self::SqliteThread,
            false => Self::Other,
        }
    }
}
