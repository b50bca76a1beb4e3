//! A program that has set a default instrumentation of its own, which it does not lose.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use diesel::connection::{
    Instrumentation, InstrumentationEvent, SimpleConnection, set_default_instrumentation,
};
use diesel::{Connection, SqliteConnection};
use request_budget::report::fields::HEALTH;
use request_budget::{Budget, Usage, task};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

static EVENTS: AtomicU64 = AtomicU64::new(0);

fn theirs() -> Option<Box<dyn Instrumentation>> {
    Some(Box::new(|_: InstrumentationEvent<'_>| {
        EVENTS.fetch_add(1, Relaxed);
    }))
}

/// The messages of events about the health of the library.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<(Level, String)>>>);

impl<S: Subscriber> Layer<S> for Messages {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);

        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }

        if event.metadata().target() == HEALTH {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().unwrap().push((*event.metadata().level(), message.0));
        }
    }
}

#[test]
fn is_kept_and_what_is_not_counted_is_logged() {
    set_default_instrumentation(theirs).unwrap();
    let messages = Messages::default();
    let subscriber = tracing_subscriber::registry().with(messages.clone());
    tracing::subscriber::set_global_default(subscriber).unwrap();

    request_budget::diesel::instrument();
    let taken = || std::mem::take(&mut *messages.0.lock().unwrap());
    let [(level, message)] = &*taken() else { panic!("one event") };
    assert_eq!(*level, Level::ERROR);
    assert!(message.contains("`request_budget::diesel::instrument_with`"), "{message}");

    let execute = || {
        let mut connection = SqliteConnection::establish(":memory:").unwrap();
        let before = EVENTS.load(Relaxed);
        let work = || {
            connection.batch_execute("SELECT 1").unwrap();
            Usage::current().unwrap().queries
        };
        let queries = task::blocking("request", Budget::new().queries(5), work);
        (queries.unwrap(), EVENTS.load(Relaxed) - before)
    };
    assert_eq!(execute(), (0, 2));
    // Nothing counts statements, and that is logged where they are limited.
    let [(level, message)] = &*taken() else { panic!("one event") };
    assert_eq!(*level, Level::WARN);
    assert!(message.starts_with("a budget limits queries"), "{message}");

    request_budget::diesel::instrument_with(theirs);
    assert_eq!(execute(), (1, 2));
    assert_eq!(taken(), []);
}
