//! The event at the end of each unit of work, and that of a violation.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use request_budget::report::fields;
use request_budget::{Budget, BudgetExt};
use sqlx::Executor;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::pool;

type Fields = BTreeMap<&'static str, String>;

/// The events of one job: target, level and fields.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(String, Level, Fields)>>>);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (target, level) = (event.metadata().target(), *event.metadata().level());
        let mut values = Values::default();
        event.record(&mut values);
        // Other tests run beside this one.
        if values.0.get(fields::WORK).is_some_and(|work| work.trim_matches('"') == "export") {
            let mut all = self.0.lock().expect("nothing panics under this lock");
            all.push((target.to_owned(), level, values.0));
        }
    }
}

#[derive(Default)]
struct Values(Fields);

impl Visit for Values {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

#[tokio::test]
async fn one_violation_and_one_usage() {
    let (events, pool) = (Events::default(), pool(2).await);
    let job = async {
        for _ in 0..5 {
            pool.fetch_all("SELECT id FROM items").await.expect("a good statement");
        }
    };
    // For all threads: `tracing` keeps for all what the first thread at an event is interested in.
    let subscriber = tracing_subscriber::registry().with(events.clone());
    tracing::subscriber::set_global_default(subscriber).expect("there is one a process");
    job.budgeted("export", Budget::new().queries(3)).await.expect("a soft limit");

    let all = events.0.lock().expect("nothing panics under this lock");
    let [(target, level, violation), (usage_target, usage_level, usage)] = &**all else {
        panic!("{all:#?}")
    };
    assert_eq!((&**target, *level), (fields::VIOLATION, Level::WARN));
    assert_eq!(violation[fields::RESOURCE], "\"queries\"");
    assert_eq!((&*violation[fields::LIMIT], &*violation[fields::OBSERVED]), ("3", "4"));
    assert_eq!(violation[fields::STATEMENT], "\"SELECT id FROM items\"");
    assert_eq!((&**usage_target, *usage_level), (fields::USAGE, Level::DEBUG));
    assert_eq!(usage[fields::WORK], "export");
    assert_eq!((&*usage[fields::QUERIES], &*usage[fields::ROWS]), ("5", "10"));
    assert_eq!((&*usage[fields::OUTCOME], &*usage[fields::VIOLATIONS]), ("\"ok\"", "1"));
}
