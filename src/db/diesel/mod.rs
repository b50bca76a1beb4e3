//! Counts what Diesel and diesel-async execute, by the events of their connections.
//!
//! One line where the program starts, before it makes its first connection, and no type changes:
//! [`instrument`]. Each statement is then one of [`queries`](crate::Usage::queries), and of
//! [`observed`](crate::Usage::observed), of the unit of work that is running where it begins. It is
//! observed, not metered: Diesel's events cannot refuse it, so a hard limit that it crosses cuts
//! the work where it waits next.
//!
//! | resource | what of it is known |
//! |---|---|
//! | `queries`, `repeated_queries`, `writes` | each statement that Diesel begins, failed and cancelled ones too. A text of several, for `batch_execute`, is one |
//! | `transactions` | each that Diesel begins, and each savepoint; a hand-written `BEGIN` is none, and no query either |
//! | `query_time`, `slow_query` | from the begin to the end that Diesel reports, transaction control included in the former: of an iterator, until it is dropped; of diesel-async on PostgreSQL and MySQL, until the result begins to arrive |
//! | `rows`, `connection_wait` | nothing |
//!
//! The texts are those that are sent. The values of parameters, which Diesel shows behind a text,
//! are left out.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main] async fn main() -> diesel::QueryResult<()> {
//! use diesel::prelude::*;
//! use diesel::sql_types::Integer;
//! use request_budget::{Budget, BudgetExt, Usage, task};
//!
//! request_budget::diesel::instrument();
//! let mut connection = SqliteConnection::establish(":memory:").unwrap();
//!
//! let request = async {
//!     // Diesel blocks, so it is on a thread for that: one that is charged to the request.
//!     let work = task::spawn_blocking(move || {
//!         connection.transaction(|connection| {
//!             for id in 1..=3 {
//!                 let user = diesel::sql_query("SELECT 'name of ' || ?");
//!                 user.bind::<Integer, _>(id).execute(connection)?;
//!             }
//!             QueryResult::Ok(())
//!         })
//!     });
//!     work.await.unwrap()?;
//!     QueryResult::Ok(Usage::current().unwrap())
//! };
//! let usage = request.budgeted("request", Budget::new()).await.unwrap()?;
//! assert_eq!((usage.queries, usage.observed, usage.transactions), (3, 3, 1));
//! assert_eq!(usage.repeated_queries, 3);
//! # Ok(()) }
//! ```
//!
//! # Diesel on other threads
//!
//! Diesel itself blocks, so programs run it on threads where no unit of work is running. What is
//! not carried there is in no report but in [`unattributed`](crate::db::Query::unattributed).
//! Carried it is charged as anything else:
//!
//! | where Diesel runs | how it is carried |
//! |---|---|
//! | `tokio::task::spawn_blocking` | [`task::spawn_blocking`](crate::task::spawn_blocking) in its place |
//! | any thread | [`task::carried`](crate::task::carried) around the closure |
//! | `interact` of deadpool-diesel | [`task::carried_with`](crate::task::carried_with) around the closure |
//! | `SyncConnectionWrapper` of diesel-async, as for SQLite | a `SpawnBlocking` that carries, see below |
//! | `AsyncPgConnection`, `AsyncMysqlConnection` | nothing to do: their events come up where the future is made and polled |
//!
//! diesel-async executes each statement on SQLite on a blocking thread, which the second parameter
//! of `SyncConnectionWrapper` chooses:
//!
//! ```ignore
//! /// Runs the statements of a connection on blocking threads, charged to the work.
//! struct Carrying;
//!
//! impl SpawnBlocking for Carrying {
//!     fn spawn_blocking<'a, R: Send + 'static>(
//!         &mut self,
//!         task: impl FnOnce() -> R + Send + 'static,
//!     ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync>>> {
//!         let task = request_budget::task::spawn_blocking(task);
//!         async { task.await.map_err(Into::into) }.boxed()
//!     }
//!
//!     fn get_runtime() -> Self {
//!         Self
//!     }
//! }
//!
//! type Connection = SyncConnectionWrapper<SqliteConnection, Carrying>;
//! ```
//!
//! # An instrumentation of your own
//!
//! Diesel has one default, and each connection has one instrumentation. So a later
//! `set_default_instrumentation` replaces this one for new connections, and `set_instrumentation`
//! on a connection replaces it there: what these connections execute is not counted any more. Keep
//! both: give the default to [`instrument_with`], and wrap what is meant for one connection in an
//! [`Instrumentation`].
//!
//! # Cancellation
//!
//! A future of diesel-async that is dropped midway was counted when it began, in the unit of work
//! in which it began. Diesel reports no end of it. Where the work itself is ended, the time until
//! then is charged; where the work goes on, no time is, since when it was dropped is not known.
//!
//! A future of `load`, `execute` and the like that is made and never polled is counted as well,
//! though nothing is sent: Diesel reports its begin when it is made.
//!
//! # Not counted
//!
//! What a connection executes to set itself up (its time zone and encoding), what it looks up about
//! types, `COPY` and notifications as diesel-async receives them, and connections that were made
//! before [`instrument`] was called. The `SELECT 1` by which a pool looks whether a connection is
//! alive is a statement like any other, and counts where the connection is asked for.

mod connection;
mod text;

use std::fmt;
use std::sync::{PoisonError, RwLock};

use ::diesel::connection as diesel;
use ::diesel::connection::InstrumentationEvent;
use tracing::{Level, event};

use self::connection::ConnectionState;
use crate::report::fields::HEALTH;
use crate::report::unmeasured::statements_are_metered;

/// What makes an instrumentation for each new connection, as Diesel takes it.
type Make = fn() -> Option<Box<dyn diesel::Instrumentation>>;

/// Creates the user's own instrumentation, to which events are passed on.
static USERS: RwLock<Option<Make>> = RwLock::new(None);

/// Counts the statements of every connection of Diesel and diesel-async that is made from now on.
///
/// Sets the default instrumentation of Diesel. If the program has set one before, that stays,
/// nothing is counted, and an event at ERROR with the target [`HEALTH`] tells so: use
/// [`instrument_with`]. A second call changes nothing.
///
/// See the [module docs](self) for what is counted, and for an example.
pub fn instrument() {
    if let Some(other) = diesel::get_default_instrumentation()
        && !other.is::<Instrumentation>()
    {
        event!(
            target: HEALTH,
            Level::ERROR,
            "statements of Diesel are not counted: the program has set a default instrumentation \
             of its own, which stays; give it to `request_budget::diesel::instrument_with` instead"
        );
        return;
    }
    install();
}

/// As [`instrument`], and hands each event on to what this makes for each new connection.
///
/// It takes what Diesel's `set_default_instrumentation` does, and is called in its place. It
/// replaces whatever default the program has set before.
///
/// # Examples
///
/// ```
/// use diesel::connection::{Instrumentation, InstrumentationEvent};
///
/// fn log() -> Option<Box<dyn Instrumentation>> {
///     Some(Box::new(|event: InstrumentationEvent<'_>| println!("{event:?}")))
/// }
///
/// request_budget::diesel::instrument_with(log);
/// // Knows that the other is kept.
/// request_budget::diesel::instrument();
/// let made = diesel::connection::get_default_instrumentation().unwrap();
/// let made = made.downcast::<request_budget::diesel::Instrumentation>().ok().unwrap();
/// assert!(made.get_ref().is_some());
/// ```
pub fn instrument_with(users: fn() -> Option<Box<dyn diesel::Instrumentation>>) {
    // No access panics midway, so what is poisoned is whole.
    *USERS.write().unwrap_or_else(PoisonError::into_inner) = Some(users);
    install();
}

fn install() {
    statements_are_metered();
    if let Err(error) = diesel::set_default_instrumentation(make) {
        event!(target: HEALTH, Level::ERROR, "statements of Diesel are not counted: {error}");
    }
}

/// What Diesel calls for each new connection.
fn make() -> Option<Box<dyn diesel::Instrumentation>> {
    let users = *USERS.read().unwrap_or_else(PoisonError::into_inner);
    let users = users.and_then(|make| make());
    Some(Box::new(Instrumentation::of(users)))
}

/// Counts the statements of one connection, and hands its events on to another instrumentation.
///
/// [`instrument`] gives one to every new connection. This is for `set_instrumentation`, which would
/// replace it.
///
/// # Examples
///
/// ```
/// # fn main() -> diesel::QueryResult<()> {
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use diesel::connection::{Connection, InstrumentationEvent, SimpleConnection};
/// use diesel::SqliteConnection;
/// use request_budget::{Budget, Usage, diesel::Instrumentation, task};
///
/// static EVENTS: AtomicU64 = AtomicU64::new(0);
///
/// let mut connection = SqliteConnection::establish(":memory:").unwrap();
/// connection.set_instrumentation(Instrumentation::with(|_: InstrumentationEvent<'_>| {
///     EVENTS.fetch_add(1, Ordering::Relaxed);
/// }));
/// let usage = task::blocking("nightly", Budget::new(), || {
///     connection.batch_execute("SELECT 1")?;
///     diesel::QueryResult::Ok(Usage::current().unwrap())
/// });
/// assert_eq!(usage.unwrap()?.queries, 1);
/// assert_eq!(EVENTS.load(Ordering::Relaxed), 2);
/// # Ok(()) }
/// ```
pub struct Instrumentation {
    users: Option<Box<dyn diesel::Instrumentation>>,
    connection: ConnectionState,
}

impl Instrumentation {
    /// For a connection that has no other instrumentation.
    #[must_use]
    pub fn new() -> Self {
        Self::of(None)
    }

    /// For a connection whose events another instrumentation gets as well.
    ///
    /// The end of a statement is charged before it is passed on, so that its time excludes that of
    /// the other instrumentation.
    #[must_use]
    pub fn with(users: impl diesel::Instrumentation) -> Self {
        Self::of(Some(Box::new(users)))
    }

    fn of(users: Option<Box<dyn diesel::Instrumentation>>) -> Self {
        statements_are_metered();
        Self { users, connection: ConnectionState::default() }
    }

    /// The other instrumentation, if there is one.
    #[must_use]
    pub fn get_ref(&self) -> Option<&dyn diesel::Instrumentation> {
        self.users.as_deref()
    }

    /// The other instrumentation, to be changed.
    pub fn get_mut(&mut self) -> Option<&mut dyn diesel::Instrumentation> {
        self.users.as_deref_mut()
    }

    /// Takes the other instrumentation out.
    #[must_use]
    pub fn into_inner(self) -> Option<Box<dyn diesel::Instrumentation>> {
        self.users
    }
}

impl Default for Instrumentation {
    fn default() -> Self {
        Self::new()
    }
}

impl diesel::Instrumentation for Instrumentation {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        self.connection.observe(&event);
        if let Some(users) = &mut self.users {
            users.on_connection_event(event);
        }
    }
}

impl fmt::Debug for Instrumentation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instrumentation")
            .field("has_other", &self.users.is_some())
            .finish_non_exhaustive()
    }
}
