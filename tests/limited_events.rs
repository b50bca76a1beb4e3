//! How many violation events are emitted: one setting for the process, and so one test.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use request_budget::report::{Outcome, Report, Reporter, fields, limit_events};
use request_budget::{Budget, BudgetExt, Limit, Violation, db::Query};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

#[derive(Clone, Default)]
struct Events(Arc<AtomicUsize>);

impl Events {
    /// How many there were since the last time.
    fn take(&self) -> usize {
        self.0.swap(0, Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == fields::VIOLATION {
            self.0.fetch_add(1, Relaxed);
        }
    }
}

/// What work came to, as a reporter sees it.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<(Outcome, u32, u64)>>>, Arc<AtomicUsize>);

impl Reporter for Ends {
    fn violation(&self, _: &Violation) {
        self.1.fetch_add(1, Relaxed);
    }

    fn finished(&self, report: &Report<'_>) {
        let end = (report.outcome(), report.violations(), report.usage().queries);
        self.0.lock().expect("nothing panics under it").push(end);
    }
}

/// Cuts twenty units of work, and compares what all but the log sees of them.
async fn cut_twenty() {
    let ends = Ends::default();
    for _ in 0..20 {
        let work = async {
            for _ in 0..3 {
                drop(Query::begin("SELECT 1").await);
            }
        };
        let budget = Budget::new().queries(Limit::hard(2));
        let work = work.budgeted("job", budget).with_reporter(ends.clone());
        work.await.expect_err("the third is refused");
    }
    assert_eq!(ends.1.load(Relaxed), 20);
    assert_eq!(*ends.0.lock().expect("nothing panics under it"), [(Outcome::Cut, 1, 2); 20]);
}

#[tokio::test(start_paused = true)]
async fn the_limit_can_be_set_at_any_time_and_changes_nothing_but_the_log() {
    let events = Events::default();
    let subscriber = tracing_subscriber::registry().with(events.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the only one");
    cut_twenty().await;
    assert_eq!(events.take(), 10, "unless it is set");
    for (most, emitted) in [(0, 0), (3, 3), (u32::MAX, 20), (3, 3), (15, 15)] {
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        limit_events(most);
        cut_twenty().await;
        assert_eq!(events.take(), emitted, "of {most}");
    }
}
