//! What the library says of itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use request_budget::report::fields::{HEALTH, RESOURCE};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The level of an event, its resources and its message.
pub(crate) type Said = (Level, String, String);

/// Every such event, in the order in which they came.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Vec<Said>>>);

/// Listens to all threads of the process, from now on.
pub(crate) fn listen() -> Health {
    let health = Health::default();
    let subscriber = tracing_subscriber::registry().with(health.clone());
    tracing::subscriber::set_global_default(subscriber).expect("there is one listener a process");
    health
}

impl Health {
    pub(crate) fn heard(&self) -> Vec<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Subscriber> Layer<S> for Health {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == HEALTH {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let heard = (*event.metadata().level(), fields.resource, fields.message);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
        }
    }
}

#[derive(Default)]
struct Fields {
    resource: String,
    message: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == RESOURCE {
            value.clone_into(&mut self.resource);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
