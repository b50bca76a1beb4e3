//! Statements that reach sqlx past the metered pools.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tracing::field::{Field, Visit};
use tracing::span::Id;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::meter::Meter;
use crate::meter::table::{By, Key};
use crate::scope;

/// The target of the events of sqlx.
pub(crate) const TARGET: &str = "sqlx::query";

/// Finds the statements that passed through no metered connection: compares those that sqlx reports
/// with what was counted.
#[derive(Default)]
pub(crate) struct Bypasses {
    /// The works that run in each span. Weak: the work holds its span.
    works: Mutex<HashMap<Id, Vec<Weak<Meter>>>>,
}

impl Bypasses {
    /// Notes that this work runs in this span.
    pub(super) fn note(&self, id: &Id, meter: &Arc<Meter>) {
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
            works.iter().all(|other| work.chain().any(|outer| ptr::eq(&*outer, &**other)))
        };
        works.iter().find(is_innermost).cloned()
    }

    fn with<T>(&self, access: impl FnOnce(&mut HashMap<Id, Vec<Weak<Meter>>>) -> T) -> T {
        // No access panics midway, so a poisoned map is whole.
        access(&mut self.works.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Bypasses {
    pub(super) fn opened(&self, id: &Id) {
        if let Some(meter) = scope::current() {
            self.note(id, &meter);
        }
    }

    pub(super) fn closed(&self, id: &Id) {
        self.with(|works| works.remove(id));
    }

    pub(super) fn executed<S>(&self, event: &Event<'_>, context: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Some(statement) = Statement::executed(event) else { return };
        let in_spans = || context.event_scope(event)?.find_map(|span| self.work_in(&span.id()));
        if let Some(meter) = scope::current().or_else(in_spans) {
            statement.compare(&meter, by());
        }
    }
}

impl fmt::Debug for Bypasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bypasses").finish_non_exhaustive()
    }
}

/// Who is at work here.
pub(crate) fn by() -> By {
    #[cfg(feature = "sqlx")]
    if let Some(by) = super::driver::running() {
        return by;
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

/// Passes an event on, once it was compared.
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
    /// The statement that an event of sqlx reports, unless it is transaction control or set-up.
    pub(crate) fn executed(event: &Event<'_>) -> Option<Self> {
        if event.metadata().target() != TARGET {
            return None;
        }
        let mut statement = Self::default();
        event.record(&mut statement);
        (!statement.is_control()).then_some(statement)
    }

    /// Whether it is transaction control, or something that the driver executes for itself.
    pub(crate) fn is_control(&self) -> bool {
        is_control(self.text())
    }

    /// Compares it with what was counted; whether this work has a statement more than was counted.
    pub(crate) fn compare(&self, meter: &Meter, by: By) -> bool {
        let (key, text) = (Key::of(self.text()), self.text());
        // A thread of a driver knows the span of a statement, and not in which of the works in that
        // span it was executed: it is of the innermost that has counted one more than was seen.
        let counted =
            || meter.places().position(|meter| meter.is_some_and(|meter| meter.has_unseen(key)));
        let begin = if by == By::Anyone { counted().unwrap_or(0) } else { 0 };
        let mut is_unmetered = false;
        for meter in meter.places().skip(begin).flatten() {
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

/// The queries that PostgreSQL's driver sends to the catalog when it prepares a statement for the
/// first time on a connection: the origins of columns, types that it does not know, and which
/// columns may be null.
const LOOKUPS: [&str; 3] = [
    "lookup(table_oid, attribute_num)",
    "lookup_inner(original_name, lookup_oid)",
    "AS col LEFT JOIN pg_catalog.pg_attribute",
];

/// Transaction control, and what drivers send to set a connection up or to prepare a statement.
fn is_control(text: &str) -> bool {
    let word = text.split_whitespace().next().map_or(Cow::Borrowed(""), |word| {
        Cow::Owned(word.trim_end_matches(';').to_ascii_uppercase())
    });
    let is_setup = word == "PRAGMA" || text.starts_with("SET sql_mode=");
    let is_lookup = || LOOKUPS.iter().any(|lookup| text.contains(lookup));
    is_setup
        || (word == "SELECT" && is_lookup())
        || ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"].contains(&&*word)
}
