//! What SQLite executed, as sqlx itself tells it by its events; nothing of ours is asked.
//!
//! The driver emits one event with the target `sqlx::query` when it is done with a statement text,
//! on the thread of the connection, where nothing of the caller but its span is entered. So the
//! events are told apart by span: each unit of work gets one of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};

use request_budget::db::SqlxEvents;
use request_budget::report::fields::{HEALTH, RESOURCE};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// How often each statement text was executed.
pub(crate) type Texts = BTreeMap<String, u64>;

/// A place to which the events of one span, and of the spans inside it, are attributed.
#[derive(Debug)]
pub(crate) struct Witness {
    key: u64,
    span: Span,
}

impl Witness {
    /// Watches a new span inside the current one.
    pub(crate) fn new() -> Self {
        LazyLock::force(&INSTALLED);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = NEXT.fetch_add(1, Relaxed);
        Self { key, span: tracing::info_span!("watched", { KEY } = key) }
    }

    /// The span to do the work in.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// What was executed inside the span so far.
    ///
    /// The event comes when the driver is done, which may be after the caller got its result:
    /// [`settle`](crate::settle) first.
    pub(crate) fn texts(&self) -> Texts {
        seen().statements.get(&self.key).cloned().unwrap_or_default()
    }

    /// How many statement texts were executed inside the span so far.
    pub(crate) fn count(&self) -> u64 {
        self.texts().values().sum()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        seen().statements.remove(&self.key);
    }
}

/// Every resource that this process was told cannot be measured.
pub(crate) fn unmeasured() -> Vec<String> {
    LazyLock::force(&INSTALLED);
    seen().unmeasured.clone()
}

const KEY: &str = "witness";

/// What the driver executes when it connects, which is no statement of the work.
const ON_CONNECT: &str = "PRAGMA foreign_keys = ON; ";

static INSTALLED: LazyLock<()> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::registry().with(Ear).with(SqlxEvents::witness());
    tracing::subscriber::set_global_default(subscriber)
        .expect("nothing else installs a subscriber");
});

static SEEN: Mutex<Seen> = Mutex::new(Seen { statements: BTreeMap::new(), unmeasured: Vec::new() });

struct Seen {
    statements: BTreeMap<u64, Texts>,
    unmeasured: Vec<String>,
}

fn seen() -> std::sync::MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Ear;

/// In the extensions of a span that is watched.
struct Watched(u64);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ear {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(key) = fields.key {
            let span = context.span(id).expect("a span exists when it is made");
            span.extensions_mut().insert(Watched(key));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        match event.metadata().target() {
            "sqlx::query" => {
                event.record(&mut fields);
                if fields.statement() == ON_CONNECT {
                    return;
                }
                // A span inside a watched span counts for both, as a scope inside a scope does.
                for span in context.event_scope(event).into_iter().flatten() {
                    if let Some(Watched(key)) = span.extensions().get() {
                        let mut seen = seen();
                        let texts = seen.statements.entry(*key).or_default();
                        *texts.entry(fields.statement()).or_default() += 1;
                    }
                }
            }
            HEALTH => {
                event.record(&mut fields);
                seen().unmeasured.push(fields.resource);
            }
            _ => {}
        }
    }
}

#[derive(Default)]
struct Fields {
    key: Option<u64>,
    summary: String,
    whole: String,
    resource: String,
}

impl Fields {
    /// The text of the statement: sqlx gives it between empty lines, or as the summary if that is
    /// all of it.
    fn statement(&self) -> String {
        let inner = self.whole.strip_prefix("\n\n").and_then(|text| text.strip_suffix('\n'));
        inner.unwrap_or(&self.summary).to_owned()
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == KEY {
            self.key = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.whole),
            RESOURCE => value.clone_into(&mut self.resource),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
