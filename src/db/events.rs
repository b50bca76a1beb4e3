//! Statements that sqlx executes, as its events report them.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tracing::dispatcher::{self, WeakDispatch};
use tracing::field::{Field, Visit};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Event, Level, Span, Subscriber, event};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};
use tracing_subscriber::{Layer, Registry};

use super::witness::{self, Bypasses, Statement, TARGET};
use crate::memory;
use crate::meter::Meter;
use crate::meter::observed::{Observation, ReportedBy};
use crate::meter::own_span::adopt_by;
#[cfg(feature = "sqlx")]
use crate::meter::own_span::is_adopted;
use crate::meter::recording;
use crate::report::elsewhere::count_unattributed;
use crate::report::fields::HEALTH;
use crate::report::unmeasured::statements_are_metered;
use crate::scope;

/// A `tracing_subscriber` layer that sees every statement that sqlx executes, by the event that
/// sqlx emits for each, and counts those that no metered connection has counted.
///
/// One line where the program sets up its logging, and no type changes: it needs no feature `sqlx`,
/// and sees every version of sqlx from 0.7 on, and what is built on it, such as SeaORM. A statement
/// that it counts is one of [`queries`](crate::Usage::queries), with its rows and time, and of
/// [`observed`](crate::Usage::observed). It has been executed, so it cannot be refused: a hard
/// limit that it crosses cuts the work where it waits next. Metered pools refuse, count
/// transactions, and cost less.
///
/// [`witness`](Self::witness) makes one that counts nothing, and reports these statements as
/// [`unmetered`](crate::Usage::unmetered).
///
/// # Whose statement it is
///
/// An event of PostgreSQL or MySQL is emitted in the task that executes the statement, and belongs
/// to the unit of work that is running there. SQLite executes on a thread of the driver, where only
/// the caller's span is known. So while this layer is part of the default subscriber, each unit of
/// work runs in a span of its own, with the target `sqlx::query` and the name `unit_of_work`, and a
/// metered connection in another one below that. A statement whose span belongs to no unit of work
/// is in [`unattributed`](crate::db::Query::unattributed), and so is one in a span that several
/// units of work enter.
///
/// # What blinds it
///
/// A filter that drops the target `sqlx::query`, a `max_level` feature of `tracing` that compiles
/// its events out, and a default subscriber without this layer: these are logged once, at WARN,
/// with the target [`HEALTH`]. Not noticed is a pool whose `log_statements` is `Off`, or is a level
/// that a filter drops: where it is TRACE, a filter at DEBUG lets nothing of this pool pass.
/// Install it as the global default: where the only subscriber of a process is the default of one
/// thread or future, and another thread comes to an event of sqlx first, `tracing` caches for all
/// threads that nobody is interested.
///
/// # Performance
///
/// sqlx makes its events at DEBUG unless told otherwise. Without a filter every event and span of
/// the program is made for this layer; give it one of its own. Let the spans pass that the program
/// has anyway: of a statement of SQLite in a span that the layer does not see, it may not wait for
/// the event where the work ends.
///
/// ```
/// use request_budget::db::SqlxEvents;
/// use tracing::{Level, Metadata};
/// use tracing_subscriber::filter::filter_fn;
/// use tracing_subscriber::{Layer, layer::SubscriberExt};
///
/// let wanted = |metadata: &Metadata<'_>| {
///     metadata.target() == "sqlx::query" || metadata.is_span() && *metadata.level() <= Level::INFO
/// };
/// let events = SqlxEvents::new().with_filter(filter_fn(wanted));
/// let subscriber = tracing_subscriber::registry().with(events);
/// # let _ = subscriber;
/// ```
///
/// # Not seen
///
/// What sqlx makes no events for: `COPY`, and the `BEGIN` of a transaction. `LISTEN` is seen, and
/// counts. Not counted though seen: other transaction control, and what the driver sends to set a
/// connection up or to look something up in the catalog. A text of several statements is one. The
/// time includes what the consumer of a stream does between rows, and the rows those that `execute`
/// throws away. An event that SQLite's thread emits after the work has ended is too late;
/// `Usage::current` and the end of the work wait up to 2 ms for a thread that is about to emit it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
/// use request_budget::{Budget, BudgetExt, Usage, db::SqlxEvents};
/// use sqlx::SqlitePool;
/// use tracing_subscriber::layer::SubscriberExt;
///
/// let subscriber = tracing_subscriber::registry().with(SqlxEvents::new());
/// tracing::subscriber::set_global_default(subscriber).unwrap();
///
/// let plain = SqlitePool::connect("sqlite::memory:").await?;
/// let work = async {
///     for id in 1..=3 {
///         sqlx::query("SELECT $1").bind(id).fetch_one(&plain).await?;
///     }
///     Ok::<_, sqlx::Error>(Usage::current().unwrap())
/// };
/// let usage = work.budgeted("request", Budget::new()).await.unwrap()?;
/// assert_eq!((usage.queries, usage.observed), (3, 3));
/// assert_eq!((usage.repeated_queries, usage.rows), (3, 3));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SqlxEvents {
    mode: Mode,
    /// The subscriber that the layer is part of.
    subscriber: OnceLock<WeakDispatch>,
}

#[derive(Debug)]
enum Mode {
    Count,
    Witness(Bypasses),
}

/// Whether one was made that counts.
static COUNTS: AtomicBool = AtomicBool::new(false);

impl SqlxEvents {
    /// A layer that counts each statement that no metered connection has counted.
    #[must_use]
    pub fn new() -> Self {
        statements_are_metered();
        COUNTS.store(true, Relaxed);
        adopt_by(Self::adopt);
        if LevelFilter::DEBUG > STATIC_MAX_LEVEL {
            static SAID: AtomicBool = AtomicBool::new(false);
            say(&SAID, "the events of sqlx are compiled out by a `max_level` feature of `tracing`");
        }
        Self { mode: Mode::Count, subscriber: OnceLock::new() }
    }

    /// A layer that counts nothing, and reports each statement that no metered connection has
    /// counted as [`unmetered`](crate::Usage::unmetered), and by its text in
    /// [`Report::unmetered`](crate::report::Report::unmetered).
    ///
    /// For tests of programs whose pools are all meant to be metered: it finds a library with a
    /// plain `PgPool` of its own, a query on [`Pool::unmetered`], a pool that somebody forgot to
    /// wrap. SQLite's statements belong to the work that runs in the caller's span, so give every
    /// request a span of its own (tower-http's `TraceLayer` does), around the budget layer, or made
    /// inside it. What is executed in a span in which several units of work run side by side
    /// belongs to none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
    /// use request_budget::{Budget, BudgetExt, Usage, db::SqlxEvents, sqlx::Pool};
    /// use sqlx::SqlitePool;
    /// use tracing::Instrument;
    /// use tracing_subscriber::layer::SubscriberExt;
    ///
    /// let subscriber = tracing_subscriber::registry().with(SqlxEvents::witness());
    /// tracing::subscriber::set_global_default(subscriber).unwrap();
    ///
    /// let plain = SqlitePool::connect("sqlite::memory:").await?;
    /// let pool = Pool::from(plain.clone());
    /// let work = async {
    ///     sqlx::query("SELECT 1").execute(&pool).await?;
    ///     sqlx::query("SELECT 2").execute(&plain).await?; // counted by nothing else
    ///     sqlx::query("SELECT 3").execute(&pool).await?;
    ///     Ok::<_, sqlx::Error>(Usage::current().unwrap())
    /// };
    /// let work = work.budgeted("request", Budget::new());
    /// let usage = work.instrument(tracing::info_span!("request")).await.unwrap()?;
    /// assert_eq!((usage.queries, usage.unmetered), (2, 1));
    /// # Ok(()) }
    /// ```
    ///
    /// [`Pool::unmetered`]: crate::sqlx::Pool::unmetered
    #[must_use]
    pub fn witness() -> Self {
        // With it no count passes by being blind.
        statements_are_metered();
        adopt_by(Self::adopt);
        Self { mode: Mode::Witness(Bypasses::default()), subscriber: OnceLock::new() }
    }

    /// Whether it counts statements, and does not only compare them.
    #[cfg(feature = "testing")]
    pub(crate) fn counts(&self) -> bool {
        matches!(self.mode, Mode::Count)
    }

    /// Makes this work known to the layer that is part of the default subscriber here, if there is
    /// one.
    fn adopt(meter: &Arc<Meter>) {
        meter.span().with_subscriber(|(id, dispatch)| {
            let mode = dispatch.downcast_ref::<Self>().map(|layer| &layer.mode);
            if let Some(Mode::Witness(bypasses)) = mode {
                bypasses.note(id, meter);
            }
        });
        if !COUNTS.load(Relaxed) {
            return;
        }
        let is_installed = dispatcher::get_default(|dispatch| dispatch.is::<Self>());
        if is_installed {
            give_span(meter);
        } else if !recording::is_live() {
            static SAID: AtomicBool = AtomicBool::new(false);
            say(&SAID, "a unit of work runs where the default subscriber has no such layer");
        }
    }
}

/// Whether this process has a layer that counts.
#[cfg(feature = "sqlx")]
pub(super) fn counts() -> bool {
    COUNTS.load(Relaxed)
}

impl Default for SqlxEvents {
    fn default() -> Self {
        Self::new()
    }
}

/// Whose statements are executed in a span; in the extensions of the spans that are made here.
struct Owner {
    /// None, of what a metered connection executes outside every unit of work.
    meter: Weak<Meter>,
    /// It is a metered connection that executes them, which has counted them.
    is_metered: bool,
}

thread_local! {
    /// The owner of the span that is being made.
    static OWNER: Cell<Option<Owner>> = const { Cell::new(None) };
    /// The spans of units of work in which this thread, which runs none of them, is.
    static ELSEWHERE: RefCell<Vec<(Id, Arc<Meter>)>> = const { RefCell::new(Vec::new()) };
}

/// Makes a span that the layer knows the owner of; none where it does not come to see it.
fn owned_span(owner: Owner, make: impl FnOnce() -> Span) -> Option<Span> {
    OWNER.set(Some(owner));
    let span = make();
    OWNER.take().is_none().then_some(span)
}

// ERROR, so that where any event of sqlx passes a filter, so do these spans.
fn give_span(meter: &Arc<Meter>) {
    let owner = Owner { meter: Arc::downgrade(meter), is_metered: false };
    let span = || tracing::span!(target: TARGET, Level::ERROR, "unit_of_work");
    match owned_span(owner, span) {
        Some(span) if tracing::enabled!(target: TARGET, Level::DEBUG) => meter.run_in(span),
        _ => {
            static SAID: AtomicBool = AtomicBool::new(false);
            say(&SAID, "a filter drops the target `sqlx::query`, or its events at DEBUG");
        }
    }
}

/// Enters the span by which what a metered connection executes here is known on the threads of
/// drivers.
#[cfg(feature = "sqlx")]
#[inline]
pub(super) fn enter_metered() -> Option<tracing::span::EnteredSpan> {
    if COUNTS.load(Relaxed) { memory::aside(metered_span).map(Span::entered) } else { None }
}

/// Enters the span by which what a metered pool does for itself is known on the threads of drivers.
///
/// For a witness as well, which compares what is executed in the other spans with what was counted.
#[cfg(feature = "sqlx")]
pub(super) fn enter_itself() -> Option<tracing::span::EnteredSpan> {
    if COUNTS.load(Relaxed) || !is_adopted() {
        return enter_metered();
    }
    memory::aside(|| {
        let owner = Owner { meter: Weak::new(), is_metered: true };
        let span = || tracing::span!(target: TARGET, Level::ERROR, "metered");
        owned_span(owner, span).map(Span::entered)
    })
}

#[cfg(feature = "sqlx")]
#[cold]
fn metered_span() -> Option<Span> {
    let make = |meter: Weak<Meter>, parent: Option<&Span>| {
        let owner = Owner { meter, is_metered: true };
        let parent = parent.and_then(Span::id);
        owned_span(
            owner,
            || tracing::span!(target: TARGET, parent: parent, Level::ERROR, "metered"),
        )
    };
    let Some(meter) = scope::current() else { return make(Weak::new(), None) };
    meter.metered_span(|own| make(Arc::downgrade(&meter), Some(own)))
}

fn say(said: &AtomicBool, why: &str) {
    if !said.swap(true, Relaxed) {
        event!(
            target: HEALTH,
            Level::WARN,
            "`SqlxEvents` counts the statements of plain pools, but {why}: some or all are not counted"
        );
    }
}

impl<S> Layer<S> for SqlxEvents
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn max_level_hint(&self) -> Option<LevelFilter> {
        // The level of the events is that of the pool's `log_statements`.
        Some(LevelFilter::TRACE)
    }

    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        self.subscriber.get_or_init(|| subscriber.downgrade());
    }

    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(owner) = OWNER.take()
            && let Some(span) = context.span(id)
        {
            span.extensions_mut().insert(owner);
        } else if let Mode::Witness(bypasses) = &self.mode {
            bypasses.opened(id);
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Mode::Witness(bypasses) = &self.mode {
            bypasses.closed(&id);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if matches!(self.mode, Mode::Witness(_)) {
            return;
        }
        memory::aside(|| {
            let Some(span) = context.span(id) else { return };
            if let Some(current) = scope::current() {
                return enter_inside(&span, &current);
            }
            let Some(meter) = owner_of(&span).and_then(|(meter, _)| meter) else { return };
            meter.enter_elsewhere();
            ELSEWHERE.with_borrow_mut(|all| all.push((id.clone(), meter)));
        });
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        if matches!(self.mode, Mode::Witness(_)) {
            return;
        }
        let left = ELSEWHERE.with_borrow_mut(|all| {
            let position = all.iter().rposition(|(entered, _)| entered == id)?;
            Some(all.remove(position).1)
        });
        if let Some(meter) = left {
            meter.exit_elsewhere();
            memory::aside(|| drop(meter));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() != TARGET || witness::is_seen() {
            return;
        }
        match &self.mode {
            Mode::Count => memory::aside(|| self.count(event, &context)),
            Mode::Witness(bypasses) => {
                let owner = context.event_span(event).as_ref().and_then(owner_of);
                if !owner.is_some_and(|(_, is_metered)| is_metered) {
                    bypasses.executed(event, &context);
                }
            }
        }
    }
}

/// The nearest owner of a span: its unit of work, if that has not ended, and whether it is metered.
fn owner_of<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>) -> Option<(Option<Arc<Meter>>, bool)> {
    let owner = |span: SpanRef<'a, R>| {
        let extensions = span.extensions();
        if extensions.get::<IsShared>().is_some() {
            return Some((None, false));
        }
        let owner = extensions.get::<Owner>()?;
        Some((owner.meter.upgrade(), owner.is_metered))
    };
    span.scope().find_map(owner)
}

/// In the extensions of a span that belongs to one unit of work and was entered by another one.
struct IsShared;

/// Assigns a span that belongs to no work to the work which enters it here, and notes one that
/// belongs to other work: on the threads of drivers it is not known which of them executes a
/// statement in it.
fn enter_inside<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>, current: &Arc<Meter>) {
    let is_stranger = |owner: &Arc<Meter>| current.chain().all(|meter| !ptr::eq(&*meter, &**owner));
    let owner = match owner_of(span) {
        None => {
            let new = Owner { meter: Arc::downgrade(current), is_metered: false };
            let mut extensions = span.extensions_mut();
            // Another thread may have been faster.
            match extensions.get_mut::<Owner>().map(|owner| owner.meter.upgrade()) {
                None => return extensions.insert(new),
                Some(owner) => owner,
            }
        }
        Some((owner, false)) => owner,
        Some((_, true)) => None,
    };
    if owner.as_ref().is_some_and(is_stranger) {
        span.extensions_mut().replace(IsShared);
        static SAID: AtomicBool = AtomicBool::new(false);
        say(&SAID, "a span of one unit of work is entered by another one");
    }
}

impl SqlxEvents {
    fn count<S>(&self, event: &Event<'_>, context: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(executed) = Executed::of(event) else { return };
        let is_metered = witness::by().is_metered();
        if scope::is_running() {
            if !is_metered {
                super::observed::observe(&executed.observation());
            }
            return;
        }
        let owner = context.event_span(event).as_ref().and_then(owner_of);
        match owner.or_else(|| self.hidden_owner()) {
            Some((_, true)) => {}
            Some((Some(meter), false)) => {
                let observation = executed.observation();
                // Measured work is recorded by a subscriber of its own, in front of this layer.
                meter.observe(&observation);
            }
            Some((None, false)) => {
                count_unattributed();
            }
            None if is_metered => {}
            None => super::observed::observe(&executed.observation()),
        }
    }

    /// The owner of the span in which this thread is, where a filter of this layer alone hides that
    /// span.
    fn hidden_owner(&self) -> Option<(Option<Arc<Meter>>, bool)> {
        let subscriber = self.subscriber.get()?.upgrade()?;
        let registry = subscriber.downcast_ref::<Registry>()?;
        owner_of(&registry.span(registry.current_span().id()?)?)
    }
}

/// What an event reports about the statement that was executed.
#[derive(Default)]
pub(crate) struct Executed {
    statement: Statement,
    rows: u64,
    time: Option<Duration>,
}

impl Executed {
    /// The statement that sqlx reports, unless it is transaction control or set-up.
    ///
    /// Another crate may emit events with the target of sqlx: they have no text, or no time.
    pub(crate) fn of(event: &Event<'_>) -> Option<Self> {
        if event.metadata().target() != TARGET {
            return None;
        }
        let mut executed = Self::default();
        event.record(&mut executed);
        let is_of_sqlx = executed.time.is_some() && !executed.statement.text().is_empty();
        (is_of_sqlx && !executed.statement.is_control()).then_some(executed)
    }

    pub(crate) fn observation(&self) -> Observation<'_> {
        Observation {
            text: self.statement.text(),
            time: self.time.unwrap_or_default(),
            rows: self.rows,
            reporter: ReportedBy::Event,
        }
    }
}

impl Visit for Executed {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.statement.record_str(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "rows_returned" {
            self.rows = value;
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.time = Duration::try_from_secs_f64(value).ok();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
