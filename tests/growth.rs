//! What tells of a job whose retained memory climbs run after run; in a process of its own, for it
//! keeps what it leaks.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};

use request_budget::alloc::CountingAllocator;
use request_budget::report::{Climb, Growth, Report, Reporter, fields};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Violation};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

const KIB: usize = 1 << 10;

/// Runs work so often under one name; what was told of it.
fn told<F: Future<Output = ()>>(runs: usize, mut work: impl FnMut(usize) -> F) -> Vec<Climb> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    let growth = Growth::new()
        .bytes(64 << 10)
        .with_listener(move |climb| keep.lock().unwrap().push(climb.clone()));
    Builder::new_current_thread().build().unwrap().block_on(async {
        for run in 0..runs {
            let run = work(run).budgeted("job", Budget::new()).with_reporter(growth.clone());
            run.await.unwrap();
        }
    });
    std::mem::take(&mut told.lock().unwrap())
}

/// Each leaves one more buffer of so many bytes in a list that nobody empties.
async fn leak(list: &Mutex<Vec<Vec<u8>>>, bytes: usize) {
    yield_now().await;
    list.lock().unwrap().push(black_box(Vec::with_capacity(bytes)));
    yield_now().await;
}

#[test]
fn a_job_that_leaks_into_a_static_list_is_told_of() {
    static LIST: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let told = told(200, |_| leak(&LIST, 4 * KIB));
    // Ten runs pass, 17 more are 68 KiB, one of which does not count; then each time it has
    // doubled.
    let runs: Vec<_> = told.iter().map(|climb| climb.runs).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!((15..=18).contains(&runs[0]), "{told:?}");
    // The list itself grows as well, by little.
    let bytes = told[0].runs * (4 << 10);
    assert!((bytes..bytes + 2_000).contains(&told[0].bytes), "{told:?}");
}

#[test]
fn a_leak_on_an_error_path_and_one_into_a_growing_buffer_are_told_of() {
    static LIST: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    static BUFFER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let on_errors = told(400, |run| async move {
        if run % 10 == 0 {
            leak(&LIST, 8 * KIB).await;
        }
    });
    assert!(!on_errors.is_empty());
    let into_buffer = told(1_000, |_| async {
        BUFFER.lock().unwrap().extend([0; KIB]);
        yield_now().await;
    });
    assert!(!into_buffer.is_empty());
}

#[test]
fn jobs_that_do_not_leak_are_not_told_of() {
    // Uses much, and keeps nothing.
    let hog = told(300, |_| async {
        let buffer = black_box(vec![0_u8; 1 << 20]);
        yield_now().await;
        drop(buffer);
    });
    assert_eq!(hog, []);

    // A cache that fills and then stays.
    let cache = Mutex::new(HashMap::new());
    let filling = told(500, |run| {
        let cache = &cache;
        async move {
            yield_now().await;
            let key = run % 8;
            cache.lock().unwrap().entry(key).or_insert_with(|| vec![0_u8; 256 * KIB]);
        }
    });
    assert_eq!(filling, []);
    assert_eq!(cache.lock().unwrap().len(), 8);

    // A value that each run replaces, the old one going before the new one comes, in another poll.
    let value = Mutex::new(Vec::new());
    let replacing = told(300, |_| async {
        drop(std::mem::take(&mut *value.lock().unwrap()));
        yield_now().await;
        *value.lock().unwrap() = black_box(vec![0_u8; 100 * KIB]);
        yield_now().await;
    });
    assert_eq!(replacing, []);

    // A buffer that is filled by one run and emptied by the next.
    let batch = Mutex::new(Vec::new());
    let by_turns = told(300, |run| {
        let batch = &batch;
        async move {
            if run % 2 == 0 {
                *batch.lock().unwrap() = black_box(vec![0_u8; 100 * KIB]);
            } else {
                drop(std::mem::take(&mut *batch.lock().unwrap()));
            }
        }
    });
    assert_eq!(by_turns, []);
}

/// The fields of the events of one target, as they print.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<HashMap<&'static str, String>>>>);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Fields(HashMap<&'static str, String>);

        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }
        }

        if event.metadata().target() == fields::GROWTH {
            assert_eq!(*event.metadata().level(), Level::WARN);
            let mut fields = Fields(HashMap::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }
    }
}

#[test]
fn it_is_an_event_and_goes_along_with_another_reporter() {
    #[derive(Clone, Default)]
    struct Ends(Arc<Mutex<usize>>);

    impl Reporter for Ends {
        fn violation(&self, _: &Violation) {}

        fn finished(&self, _: &Report<'_>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    static LIST: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let (events, ends) = (Events::default(), Ends::default());
    let subscriber = tracing_subscriber::registry().with(events.clone());
    let growth = Growth::new().warm_up(0).bytes(9 << 10);
    tracing::subscriber::with_default(subscriber, || {
        Builder::new_current_thread().build().unwrap().block_on(async {
            for _ in 0..3 {
                let run = leak(&LIST, 10 * KIB).budgeted("import", Budget::new());
                run.with_reporter((growth.clone(), ends.clone())).await.unwrap();
            }
        });
    });
    assert_eq!(*ends.0.lock().unwrap(), 3);
    let [event] = <[_; 1]>::try_from(events.0.lock().unwrap().clone()).unwrap();
    assert_eq!(event[fields::WORK], "\"import\"");
    assert_eq!(event[fields::RUNS], "2");
    let bytes: usize = event[fields::GROWN].parse().unwrap();
    assert!((20 * KIB..20 * KIB + 500).contains(&bytes), "{bytes}");
    assert!(event["message"].ends_with(" kept over 2 runs"), "{event:?}");
}

/// So many runs of a job that takes statements on a pool; what each but the first retained, and
/// what was told of it.
fn with_statements(runs: usize) -> (Vec<u64>, Vec<Climb>) {
    #[derive(Clone, Default)]
    struct Retained(Arc<Mutex<Vec<u64>>>);

    impl Reporter for Retained {
        fn violation(&self, _: &Violation) {}

        fn finished(&self, report: &Report<'_>) {
            self.0.lock().unwrap().push(report.usage().retained.unwrap());
        }
    }

    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    let growth = Growth::new().with_listener(move |climb| keep.lock().unwrap().push(climb.clone()));
    let retained = Retained::default();
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
        let pool = Pool::from(pool.connect("sqlite::memory:").await.unwrap());
        for _ in 0..runs {
            let work = async {
                let mut transaction = pool.begin().await.unwrap();
                sqlx::query("SELECT 1").fetch_one(&mut *transaction).await.unwrap();
                transaction.commit().await.unwrap();
                sqlx::query("SELECT 2").fetch_all(&pool).await.unwrap();
            };
            let work = work.budgeted("job", Budget::new());
            work.with_reporter((growth.clone(), retained.clone())).await.unwrap();
        }
    });
    let mut retained = std::mem::take(&mut *retained.0.lock().unwrap());
    retained.remove(0);
    (retained, std::mem::take(&mut told.lock().unwrap()))
}

#[test]
fn giving_a_connection_back_is_nobodys_memory() {
    let (retained, told) = with_statements(10_000);
    // The thread of SQLite's driver frees what it was sent whenever it comes to it: some hundred
    // bytes.
    assert!(retained.iter().max() < Some(&1_024), "{:?}", retained.iter().max());
    assert_eq!(told, []);
}

#[test]
fn a_leak_of_a_hundred_bytes_a_run_is_told_of_by_default() {
    static LIST: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    LIST.lock().unwrap().reserve(100_000);
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    let growth = Growth::new().with_listener(move |climb| keep.lock().unwrap().push(climb.clone()));
    Builder::new_current_thread().build().unwrap().block_on(async {
        for _ in 0..100_000 {
            let run = leak(&LIST, 100).budgeted("job", Budget::new());
            run.with_reporter(growth.clone()).await.unwrap();
        }
    });
    let told: Vec<_> = told.lock().unwrap().iter().map(|climb| climb.runs).collect();
    // 8 MiB are 83,886 of them, and one that does not count.
    assert_eq!(told, [83_888]);
}
