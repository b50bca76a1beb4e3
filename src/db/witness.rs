//! Statements that reach sqlx past the metered pools.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tracing::field::{Field, Visit};
use tracing::span::Id;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::meter::Meter;
use crate::meter::table::{By, Key};
use crate::report::unmeasured::statements_are_metered;
use crate::scope;

/// The target of the events of sqlx.
pub(crate) const TARGET: &str = "sqlx::query";

/// A `tracing_subscriber` layer that sees the statements that sqlx executes, and reports those that did
/// not pass through a metered pool, as [`unmetered`](crate::Usage::unmetered).
///
/// For a library that has a plain `PgPool` of its own, a query on [`Pool::unmetered`], a pool that
/// somebody forgot to wrap: what they execute is in no count, but sqlx tells of each statement by a
/// `tracing` event. This layer compares these with what was counted. Which statements they were is in
/// [`Report::unmetered`](crate::report::Report::unmetered).
///
/// An event belongs to the work that is running where it comes up. The statements of SQLite run on a
/// thread of the driver, which needs a *global* subscriber, and where only the caller's span is known:
/// they belong to the work that runs in that span, so give every request a span of its own (tower-http's
/// `TraceLayer` does), around the budget layer, or made inside it. What comes up outside every unit of work, or
/// in a span in which several run side by side, belongs to none.
///
/// # Performance
///
/// sqlx makes these events at DEBUG, and each costs more than counting does: made for tests, and for
/// looking around in production for a while. A filter that drops the target `sqlx::query` blinds it;
/// so does `log_statements(LevelFilter::Off)`. At another level there (`LevelFilter::Trace`) they are seen where the
/// filter lets that level pass.
///
/// # Not seen
///
/// What sqlx makes no events for: `COPY`, and the `BEGIN` of a transaction. Not reported though seen: other
/// transaction control, and what the driver sends to set a connection up. An event that comes up after its work has
/// ended comes too late.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
/// use request_budget::{Budget, BudgetExt, Usage, db::BypassWitness, sqlx::Pool};
/// use sqlx::SqlitePool;
/// use tracing::Instrument;
/// use tracing_subscriber::layer::SubscriberExt;
///
/// let subscriber = tracing_subscriber::registry().with(BypassWitness::new());
/// tracing::subscriber::set_global_default(subscriber).unwrap();
///
/// let plain = SqlitePool::connect("sqlite::memory:").await?;
/// let pool = Pool::from(plain.clone());
/// let work = async {
///     sqlx::query("SELECT 1").execute(&pool).await?;
///     sqlx::query("SELECT 2").execute(&plain).await?; // nobody counts this one
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
#[derive(Default)]
pub struct BypassWitness {
    /// The works that run in each span. Weak: the work holds its span.
    works: Mutex<HashMap<Id, Vec<Weak<Meter>>>>,
}

impl BypassWitness {
    /// A witness that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        // With it no count passes by being blind.
        statements_are_metered();
        Self::default()
    }

    /// Notes that this work runs in the span in which it was started.
    pub(crate) fn adopt(meter: &Arc<Meter>) {
        meter.span().with_subscriber(|(id, dispatch)| {
            if let Some(witness) = dispatch.downcast_ref::<Self>() {
                witness.note(id, meter);
            }
        });
    }

    fn note(&self, id: &Id, meter: &Arc<Meter>) {
        self.with(|works| {
            let works = works.entry(id.clone()).or_default();
            works.retain(|work| work.strong_count() > 0);
            if !works.iter().any(|work| ptr::eq(work.as_ptr(), Arc::as_ptr(meter))) {
                works.push(Arc::downgrade(meter));
            }
        });
    }

    /// The innermost work that runs in a span; none if there are several, side by side.
    fn work_in(&self, id: &Id) -> Option<Arc<Meter>> {
        let works: Vec<_> = self.with(|works| {
            works.get(id).map(|works| works.iter().filter_map(Weak::upgrade).collect())
        })?;
        let is_innermost = |work: &&Arc<Meter>| {
            works.iter().all(|other| work.chain().any(|outer| ptr::eq(outer, &**other)))
        };
        works.iter().find(is_innermost).cloned()
    }

    fn with<T>(&self, access: impl FnOnce(&mut HashMap<Id, Vec<Weak<Meter>>>) -> T) -> T {
        // No access panics half way, so a poisoned map is whole.
        access(&mut self.works.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S> Layer<S> for BypassWitness
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _: &tracing::span::Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if let Some(meter) = scope::current() {
            self.note(id, &meter);
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.with(|works| works.remove(&id));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if is_seen() {
            return;
        }
        let Some(statement) = Statement::executed(event) else { return };
        let in_spans = || context.event_scope(event)?.find_map(|span| self.work_in(&span.id()));
        if let Some(meter) = scope::current().or_else(in_spans) {
            statement.compare(&meter, by());
        }
    }
}

impl fmt::Debug for BypassWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BypassWitness").finish_non_exhaustive()
    }
}

/// Who is at work here.
pub(crate) fn by() -> By {
    #[cfg(feature = "sqlx")]
    if super::driver::is_running() {
        return By::MeteredDriver;
    }
    By::Anyone
}

/// Whether another witness has seen the event that comes up here.
pub(crate) fn is_seen() -> bool {
    #[cfg(feature = "testing")]
    return SEEN.get();
    #[cfg(not(feature = "testing"))]
    false
}

#[cfg(feature = "testing")]
thread_local! {
    static SEEN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Hands on an event that has been compared.
#[cfg(feature = "testing")]
pub(crate) fn seen(hand_on: impl FnOnce()) {
    let before = SEEN.replace(true);
    hand_on();
    SEEN.set(before);
}

/// The text in an event of sqlx: its first four words and, if that is not all, the whole of it.
#[derive(Default)]
pub(crate) struct Statement {
    summary: String,
    whole: String,
}

impl Statement {
    /// The statement that sqlx says it has executed, unless it is transaction control or set-up.
    pub(crate) fn executed(event: &Event<'_>) -> Option<Self> {
        if event.metadata().target() != TARGET {
            return None;
        }
        let mut statement = Self::default();
        event.record(&mut statement);
        (!is_control(statement.text())).then_some(statement)
    }

    /// Compares it with what was counted; whether this work has a statement more than was counted.
    pub(crate) fn compare(&self, meter: &Meter, by: By) -> bool {
        let (key, text) = (Key::of(self.text()), self.text());
        // A thread of a driver knows the span of a statement, and not in which of the works in that span it
        // was executed: it is of the innermost that has counted one more than was seen.
        let counted = || meter.chain().position(|meter| meter.has_unseen(key));
        let begin = if by == By::Anyone { counted().unwrap_or(0) } else { 0 };
        let mut is_unmetered = false;
        for meter in meter.chain().skip(begin) {
            is_unmetered |= meter.witness_statement(key, text, by);
        }
        is_unmetered
    }

    pub(crate) fn text(&self) -> &str {
        // sqlx puts the whole text on lines of its own.
        let whole = self.whole.strip_prefix("\n\n").and_then(|whole| whole.strip_suffix('\n'));
        whole.unwrap_or(&self.summary)
    }
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.whole),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Transaction control, and what drivers send to set a connection up.
fn is_control(text: &str) -> bool {
    let word = text.split_whitespace().next().map_or(Cow::Borrowed(""), |word| {
        Cow::Owned(word.trim_end_matches(';').to_ascii_uppercase())
    });
    let is_setup = word == "PRAGMA" || text.starts_with("SET sql_mode=");
    is_setup || ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"].contains(&&*word)
}
