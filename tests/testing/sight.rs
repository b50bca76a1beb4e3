//! What is seen of statements that nothing counts, and of what is around a measurement.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, TryStreamExt};
use request_budget::db::{Query, SqlxEvents};
use request_budget::sqlx::Pool;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Usage, task};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Executor, Sqlite, SqlitePool};
use tracing::instrument::WithSubscriber;
use tracing::{Event, Instrument, Span, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::{EnvFilter, Layer};

use crate::failure;

async fn pools() -> (SqlitePool, Pool<Sqlite>) {
    let options = SqlitePoolOptions::new().max_connections(1);
    let plain = options.connect_with(SqliteConnectOptions::new()).await.unwrap();
    (plain.clone(), Pool::from(plain))
}

async fn execute(pool: &SqlitePool, text: &'static str) {
    pool.execute(text).await.unwrap();
}

/// The statements that nothing counted, with how often.
fn unmetered<T>(record: &request_budget::testing::Record<T>) -> Vec<(&str, u64)> {
    let sum: u64 = record.unmetered().iter().map(|statement| statement.executions).sum();
    assert_eq!(sum, record.usage().unmetered);
    record.unmetered().iter().map(|statement| (&*statement.text, statement.executions)).collect()
}

#[tokio::test]
async fn the_same_statement_counted_and_not() {
    let (plain, pool) = pools().await;
    let record = measure(async {
        for _ in 0..3 {
            pool.execute("SELECT 1").await.unwrap();
        }
        execute(&plain, "SELECT 1").await;
        execute(&plain, "SELECT 1").await;
        pool.execute("SELECT 1").await.unwrap();
    });
    let record = record.await;
    assert_eq!((record.usage().queries, unmetered(&record)), (4, vec![("SELECT ?", 2)]));
    // Both are there, so both count.
    record.assert_within(Budget::new().queries(6).repeated_queries(4));
    let said = failure(|| record.assert_within(Budget::new().queries(5)));
    assert!(said.starts_with("6 queries, limit 5: 1 too many\n"), "{said}");
    record.assert_queries(6);
    let said = failure(|| record.assert_no_unmetered());
    assert!(said.starts_with("2 statements passed through no metered connection\n"), "{said}");
}

/// Tasks that are not carried along, of both kinds of runtime and from another thread.
async fn not_carried() {
    let (_, pool) = pools().await;
    let children = |pool: &Pool<Sqlite>| {
        let [task, blocking] = [pool.clone(), pool.clone()];
        let runtime = tokio::runtime::Handle::current();
        async move {
            tokio::spawn(async move {
                for _ in 0..3 {
                    task.execute("SELECT 1").await.unwrap();
                }
            })
            .await
            .unwrap();
            let query = async move { blocking.execute("SELECT 1").await.unwrap() };
            tokio::task::spawn_blocking(move || runtime.block_on(query)).await.unwrap();
        }
    };
    let record = measure(children(&pool)).await;
    assert_eq!((record.usage().queries, record.usage().unmetered), (0, 0));
    let [statement] = record.elsewhere() else { panic!("one statement") };
    assert_eq!((&*statement.text, statement.executions), ("SELECT ?", 4));
    let said = failure(|| record.assert_within(Budget::new().queries(1)));
    let first = "the budget limits queries, but the work itself executed none, while 4 statements \
                 ran in other tasks\n";
    assert!(said.starts_with(first), "{said}");
    assert!(
        said.contains("\nstatements of other work meanwhile: 4, in no count\n     4x SELECT ?"),
        "{said}"
    );
    assert!(said.contains("\n       at tests/testing/sight.rs:"), "{said}");
    assert!(said.contains("`.in_current_budget()`"), "{said}");

    // Statements of the work's own do not make up for them.
    let record = measure(async {
        pool.execute("SELECT 2").await.unwrap();
        children(&pool).await;
    });
    let record = record.await;
    assert_eq!((record.usage().queries, record.elsewhere()[0].executions), (1, 4));
    let said = failure(|| record.assert_queries(1));
    let first = "the test counts queries, but the work itself may not have executed all, while 4 \
                 statements ran in other tasks\n";
    assert!(said.starts_with(first), "{said}");
    assert!(said.contains("`.in_current_budget()`"), "{said}");
    failure(|| record.assert_within(Budget::new().queries(9)));
    // It is about statements only.
    record.assert_within(Budget::new().external_calls(0));
}

/// A data loader: it spawns a task that executes what was asked for, one by one.
async fn load<S, T>(pool: &Pool<Sqlite>, spawn: S)
where
    S: FnOnce(BoxFuture<'static, ()>) -> tokio::task::JoinHandle<T>,
{
    let pool = pool.clone();
    let load = async move {
        for key in 0..10 {
            sqlx::query("SELECT $1").bind(key).execute(&pool).await.unwrap();
        }
    };
    spawn(Box::pin(load)).await.unwrap();
}

#[tokio::test]
async fn what_a_data_loader_repeats_in_a_task_is_not_missed() {
    let (_, pool) = pools().await;
    let page = async |is_carried| {
        let page = async {
            pool.execute("SELECT 'posts'").await.unwrap();
            match is_carried {
                true => load(&pool, task::spawn).await,
                false => load(&pool, tokio::spawn).await,
            }
        };
        measure(page).await
    };
    let record = page(false).await;
    assert_eq!((record.usage().queries, record.elsewhere()[0].executions), (1, 10));
    for said in [
        failure(|| record.assert_queries(1)),
        failure(|| record.assert_no_repeated_statements()),
        failure(|| record.assert_within(Budget::new().queries(20))),
    ] {
        assert!(said.contains(", while 10 statements ran in other tasks\n"), "{said}");
        assert!(said.contains("\n    10x SELECT ?  <- repeated\n"), "{said}");
    }

    let record = page(true).await;
    assert_eq!((record.usage().queries, record.usage().repeated_queries), (11, 10));
    record.assert_queries(11);
    failure(|| record.assert_no_repeated_statements());
}

#[tokio::test]
async fn tasks_that_are_not_carried_along_are_not_taken_for_none() {
    not_carried().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_are_they_on_other_threads() {
    not_carried().await;
}

#[tokio::test]
async fn tasks_that_nobody_waited_for_are_not_taken_for_none() {
    let (_, pool) = pools().await;
    let query = |pool: &Pool<Sqlite>| {
        let pool = pool.clone();
        async move {
            pool.execute("SELECT 1").await.unwrap();
        }
    };
    let record = measure(async { [task::spawn(query(&pool))] }).await;
    let said = failure(|| record.assert_queries(0));
    let first = "the test counts queries, but it executed none by its end, with 1 task that was \
                 carried along still running\n";
    assert!(said.starts_with(first), "{said}");
    let [child] = record.into_output();
    child.await.unwrap();

    let both = async {
        pool.execute("SELECT 2").await.unwrap();
        [task::spawn(query(&pool)), task::spawn(query(&pool))]
    };
    let record = measure(both.budgeted("both", Budget::new())).await;
    assert_eq!(record.usage().queries, 1);
    let said = failure(|| record.assert_queries(1));
    assert!(said.contains("but 2 tasks that were carried along were still running at its end\n"));
    assert!(said.contains("\n2 tasks that were carried along had not ended by then\n"), "{said}");

    // What has ended, was dropped, or was called is over.
    let over = async {
        task::spawn(std::future::ready(())).await.unwrap();
        task::spawn_blocking(|| ()).await.unwrap();
        drop((query(&pool).in_current_budget(), task::carried(|| ())));
        let aborted = task::spawn(std::future::pending::<()>());
        aborted.abort();
        aborted.await.unwrap_err();
    };
    measure(over).await.assert_queries(0);
}

#[tokio::test]
async fn what_is_meant_to_be_apart_and_what_others_measure_is_not_missing() {
    let (_, pool) = pools().await;
    let query = || {
        let pool = pool.clone();
        async move {
            pool.execute("SELECT 1").await.unwrap();
        }
    };
    let job =
        async { tokio::spawn(query().budgeted("job", Budget::new())).await.unwrap().unwrap() };
    let record = measure(job).await;
    record.assert_queries(0);
    assert!(record.elsewhere().is_empty());

    let (idle, other) = futures_util::join!(
        measure(tokio::time::sleep(Duration::from_millis(1))),
        measure(query().budgeted("other", Budget::new())),
    );
    idle.assert_queries(0);
    other.assert_queries(1);
    assert!(idle.elsewhere().is_empty() && other.elsewhere().is_empty());

    // What ran before, and what runs in another runtime, is none of its business.
    query().await;
    let there = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { drop(Query::start("SELECT 1").unwrap()) });
        drop(Query::start("SELECT 1").unwrap());
    };
    let record = measure(async { std::thread::spawn(there).join().unwrap() }).await;
    record.assert_queries(0);
    assert!(record.elsewhere().is_empty());
}

#[tokio::test]
async fn statements_that_differ_in_their_values_are_the_same() {
    let (_, pool) = pools().await;
    let record = measure(async {
        for text in ["SELECT 1 WHERE 2 IN (3)", "SELECT 4 WHERE 5 IN (6, 7)", "SELECT 8, 9"] {
            pool.execute(text).await.unwrap();
        }
    });
    let record = record.await;
    assert_eq!(record.usage().repeated_queries, 1, "as in production");
    let said = failure(|| record.assert_within(Budget::new().repeated_queries(1)));
    assert!(
        said.starts_with("2 executions of the same statement, limit 1: 1 too many\n"),
        "{said}"
    );
    let said = failure(|| record.assert_no_repeated_statements());
    assert!(said.starts_with("`SELECT ? WHERE ? IN (?)` was executed 2 times\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn measurements_side_by_side_see_their_own() {
    let measurements = (0..20_u64).map(|n| {
        tokio::spawn(async move {
            let (plain, pool) = pools().await;
            let work = async {
                for _ in 0..n {
                    pool.execute("SELECT 1").await.unwrap();
                }
                join_all((0..n % 5).map(|_| execute(&plain, "SELECT 2"))).await;
            };
            let record = measure(work.budgeted("inner", Budget::new())).await;
            assert_eq!(record.usage().queries, n);
            let expected = if n % 5 > 0 { vec![("SELECT ?", n % 5)] } else { Vec::new() };
            assert_eq!(unmetered(&record), expected);
        })
    });
    for measurement in measurements.collect::<Vec<_>>() {
        measurement.await.unwrap();
    }
}

#[tokio::test]
async fn a_measurement_inside_a_measurement_belongs_to_both() {
    let (plain, pool) = pools().await;
    let outer = measure(async {
        pool.execute("SELECT 1").await.unwrap();
        let inner = measure(async {
            execute(&plain, "SELECT 2").await;
            pool.execute("SELECT 3").await.unwrap();
        });
        inner.await
    });
    let outer = outer.await;
    assert_eq!((outer.usage().queries, outer.usage().unmetered), (2, 1));
    assert_eq!(unmetered(&outer), [("SELECT ?", 1)]);
    let inner = outer.into_output();
    assert_eq!((inner.usage().queries, inner.usage().unmetered), (1, 1));
}

#[tokio::test]
async fn a_statement_that_was_given_up_is_waited_for() {
    let (plain, _) = pools().await;
    let mut connection = plain.acquire().await.unwrap();
    let long = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
                SELECT count(*) FROM n";
    let record = measure(async {
        // The thread of the driver has it by now, and goes on.
        assert!(connection.execute(long).now_or_never().is_none());
    });
    let record = record.await;
    assert_eq!(record.usage().unmetered, 1);
    let [statement] = record.unmetered() else { panic!("one statement") };
    assert_eq!(statement.sites()[0].places[0].file, "tests/testing/sight.rs");
}

#[tokio::test]
async fn streams_that_are_dropped_early_are_no_bypass() {
    let (_, pool) = pools().await;
    pool.execute("CREATE TABLE numbers AS VALUES (1), (2), (3)").await.unwrap();
    let record = measure(async {
        let mut rows = pool.fetch("SELECT 1 UNION SELECT 2");
        assert!(rows.try_next().await.unwrap().is_some());
        drop(rows);
        pool.execute("SELECT 3").await.unwrap();
    });
    let record = record.await;
    assert_eq!((record.usage().queries, record.usage().unmetered), (2, 0));
}

/// Keeps the events of sqlx and of the test, and the spans around them.
#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ears {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let spans = context.event_scope(event).into_iter().flatten();
        let spans: Vec<_> = spans.map(|span| span.name()).collect();
        let target = event.metadata().target();
        if target == "sqlx::query" || target == "heard" {
            self.0.lock().unwrap().push(format!("{target} in {}", spans.join(", ")));
        }
    }
}

#[tokio::test]
async fn the_subscriber_of_the_test_hears_all_as_before() {
    let ears = Ears::default();
    // A witness of the user's own does not see double.
    let subscriber = Registry::default().with(ears.clone()).with(SqlxEvents::witness());
    let (plain, pool) = pools().await;
    let work = async {
        tracing::info!(target: "heard", "1");
        execute(&plain, "SELECT 1").instrument(tracing::info_span!("inner")).await;
        pool.execute("SELECT 2").await.unwrap();
        let current = Span::current();
        assert_eq!(current.metadata().map(|span| span.name()), Some("outer"));
        tracing::info!(target: "heard", parent: &current, "2");
        let child = tracing::info_span!(parent: &current, "child");
        tracing::info!(target: "heard", parent: &child, "3");
        Usage::current().unwrap().unmetered
    };
    let measured = async { measure(work).instrument(tracing::info_span!("outer")).await };
    let record = measured.with_subscriber(subscriber).await;
    assert_eq!(record.usage().queries, 1);
    assert_eq!(unmetered(&record), [("SELECT ?", 1)]);
    assert_eq!(record.into_output(), 1);
    // The events of the driver are in the spans of the work, though on another thread.
    let expected = [
        "heard in outer",
        "sqlx::query in inner, outer",
        "sqlx::query in outer",
        "heard in outer",
        "heard in child, outer",
    ];
    assert_eq!(*ears.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_subscriber_inside_the_measured_work_stays_the_inner_one() {
    let ears = Ears::default();
    let inner = async { tracing::info!(target: "heard", "1") }.budgeted("inner", Budget::new());
    let work = inner.with_subscriber(Registry::default().with(ears.clone()));
    measure(work).await.into_output().unwrap();
    assert_eq!(*ears.0.lock().unwrap(), ["heard in "]);
    tracing::info!(target: "heard", "nobody listens any more");
    assert_eq!(ears.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn filters_of_the_test_do_not_blind_it() {
    let ears = Ears::default();
    let filter = EnvFilter::new("heard=info");
    let subscriber = Registry::default().with(ears.clone().with_filter(filter));
    let (plain, pool) = pools().await;
    let record = async {
        measure(async {
            for _ in 0..2 {
                execute(&plain, "SELECT 1").await;
                tracing::info!(target: "heard", "it is let through");
                tracing::debug!(target: "heard", "it is not");
                pool.execute("SELECT 2").await.unwrap();
            }
        })
        .await
    };
    let record = record.with_subscriber(subscriber).await;
    assert_eq!(unmetered(&record), [("SELECT ?", 2)]);
    assert_eq!(*ears.0.lock().unwrap(), ["heard in "; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_moves_the_times() {
    let record = measure(async {
        let query = Query::start("SELECT 1").unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(query);
    });
    let record = record.await;
    assert_eq!(record.statements()[0].time, Duration::from_secs(3));
    record.assert_within(Budget::new().total_time(Duration::from_secs(3)));
    let said = failure(|| record.assert_within(Budget::new().slow_query(Duration::from_secs(2))));
    assert!(said.starts_with("3s in one statement, limit 2s: 1s too much\n"), "{said}");
}

#[test]
fn it_needs_no_runtime() {
    let work = measure(async { drop(Query::start("SELECT 1").unwrap()) });
    work.now_or_never().unwrap().assert_queries(1);
}

#[tokio::test]
async fn waits_for_connections_and_polls_are_timed() {
    let (_, pool) = pools().await;
    let record = measure(async {
        let held = pool.acquire().await.unwrap();
        let query = async { pool.execute("SELECT 1").await.unwrap() };
        let release = async { drop(held) };
        futures_util::future::join(query, release).await
    });
    let record = record.await;
    let zero = Duration::ZERO;
    let said = failure(|| record.assert_within(Budget::new().connection_wait(zero)));
    assert!(said.contains(" waiting for connections, limit 0ns: "), "{said}");
    assert!(said.contains("no connection was free: give the pool more, or hold each"), "{said}");
    let said = failure(|| record.assert_within(Budget::new().poll_time(zero)));
    assert!(
        said.contains(" in one poll, limit 0ns: ") && said.contains("spawn_blocking"),
        "{said}"
    );
}

#[tokio::test]
async fn a_panic_inside_leaves_nothing_behind() {
    let work = tokio::spawn(measure(async {
        drop(Query::start("SELECT 1").unwrap());
        panic!("on purpose");
    }));
    drop(work.await.unwrap_err());
    assert_eq!(Usage::current(), None);
    measure(async {}).await.assert_queries(0);
}

#[tokio::test]
async fn the_books_are_not_charged_to_the_work() {
    // The first time, what the runtime and the driver keep for all is made.
    let allocated = async |times: u64| {
        let record = measure(async {
            for _ in 0..times {
                drop(Query::start("SELECT name FROM authors WHERE id = ?").unwrap());
            }
        });
        record.await.usage().allocated.unwrap()
    };
    allocated(1).await;
    assert_eq!(allocated(1).await, allocated(100).await);
}

const ALONE: &str = "REQUEST_BUDGET_TEST_ALONE";

/// In a process where nothing has listened to sqlx yet; does nothing in an ordinary run.
#[tokio::test]
async fn another_thread_is_first() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let (plain, _) = pools().await;
    let first = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { execute(&pools().await.0, "SELECT 1").await });
    };
    let record = measure(async {
        std::thread::spawn(first).join().unwrap();
        execute(&plain, "SELECT 2").await;
    });
    assert_eq!(unmetered(&record.await), [("SELECT ?", 1)]);
}

#[test]
fn a_test_beside_it_that_nobody_measures_does_not_blind_it() {
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let alone = alone.args(["--exact", "sight::another_thread_is_first"]).env(ALONE, "1");
    let output = alone.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn hooks_of_a_metered_pool_are_no_bypass() {
    let hook = "SELECT 'hook'";
    let options = SqlitePoolOptions::new().max_connections(1);
    let options = options
        .after_connect(move |connection, _| {
            Box::pin(async move { connection.execute(hook).await.map(drop) })
        })
        .before_acquire(move |connection, _| {
            Box::pin(async move { connection.execute(hook).await.map(|_| true) })
        });
    let pool = Pool::from(options.connect_lazy_with(SqliteConnectOptions::new()));
    let record = measure(async {
        for _ in 0..3 {
            pool.execute(hook).await.unwrap();
        }
        pool.describe(sqlx::SqlStr::from_static(hook)).await.unwrap();
    });
    let record = record.await;
    record.assert_queries(3);
    record.assert_no_unmetered();
    assert_eq!((record.usage().queries, unmetered(&record)), (3, vec![]));
}

#[tokio::test]
async fn the_statements_of_a_batch_repeat_nothing_unless_the_batch_is_repeated() {
    let (_, pool) = pools().await;
    let batches = async |times: u32| {
        let work = async {
            for _ in 0..times {
                sqlx::raw_sql("SELECT 1; SELECT 'b'").execute(&pool).await.unwrap();
            }
        };
        measure(work).await
    };
    let once = batches(1).await;
    assert_eq!((once.usage().queries, once.usage().repeated_queries), (2, 1));
    assert_eq!((once.statements()[0].executions, once.statements()[0].repetitions), (2, 1));
    once.assert_no_repeated_statements();
    once.assert_within(Budget::new().queries(2).repeated_queries(1));

    let thrice = batches(3).await;
    assert_eq!((thrice.usage().queries, thrice.usage().repeated_queries), (6, 3));
    assert_eq!((thrice.statements()[0].executions, thrice.statements()[0].repetitions), (6, 3));
    let said = failure(|| thrice.assert_no_repeated_statements());
    assert!(said.starts_with("`SELECT ?; SELECT ?` was executed 3 times\n"), "{said}");
    thrice.assert_within(Budget::new().repeated_queries(3));
    let said = failure(|| thrice.assert_within(Budget::new().repeated_queries(2)));
    assert!(said.contains("3 executions of the same statement, limit 2"), "{said}");
}
