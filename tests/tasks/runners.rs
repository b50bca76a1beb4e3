//! Runners: a loop over a channel, an interval, a set of tasks, apalis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use apalis::prelude::{
    Attempt, BoxDynError, MemoryStorage, RetryPolicy, Task, TaskBuilder, TaskId, TaskSink,
    WorkerBuilder, WorkerBuilderExt, WorkerContext, task_fn,
};
use request_budget::db::sqlx::Pool;
use request_budget::report::{Attributes, Outcome};
use request_budget::{Budget, BudgetExt, Resource, TaskBudgetLayer, Usage};
use sqlx::sqlite::SqlitePoolOptions;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tower::Layer;

use crate::support::{Ledger, call, ms, query};

/// Runs jobs one after the other until there are no more; a job that panics ends alone.
async fn worker<F>(jobs: Arc<Mutex<mpsc::Receiver<F>>>)
where
    F: Future<Output: Send> + Send + 'static,
{
    loop {
        let job = jobs.lock().await.recv().await;
        let Some(job) = job else { return };
        // A task of its own, so that a panic stays there.
        drop(tokio::spawn(job).await);
    }
}

#[test]
fn a_thousand_jobs_on_eight_workers_are_kept_apart() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(8).enable_all().build().unwrap().block_on(async {
        let options = SqlitePoolOptions::new().max_connections(8).min_connections(8);
        let pool = Pool::from(options.connect("sqlite::memory:").await.unwrap());
        let ledger = Ledger::default();
        let (send, jobs) = mpsc::channel(16);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut workers = JoinSet::new();
        for _ in 0..8 {
            workers.spawn(worker(Arc::clone(&jobs)));
        }
        for id in 0..1_000_u64 {
            let pool = pool.clone();
            let job = async move {
                // Each a number of its own of statements, rows and calls, two of them in a child.
                for n in 0..id % 13 {
                    sqlx::query(["SELECT 1", "SELECT 2"][(n % 2) as usize])
                        .fetch_all(&pool)
                        .await
                        .unwrap();
                    tokio::task::yield_now().await;
                }
                for _ in 0..id % 5 {
                    call().unwrap();
                }
                let child = async move { sqlx::query("SELECT 3").execute(&pool).await.unwrap() };
                request_budget::task::spawn(child).await.unwrap();
            };
            let job = job
                .budgeted("count", Budget::new().queries(10))
                .with_attributes(Attributes::new().with("job", id))
                .with_reporter(ledger.clone());
            assert!(send.send(job).await.is_ok());
        }
        drop(send);
        workers.join_all().await;

        let ends = ledger.ends();
        assert_eq!(ends.len(), 1_000);
        let mut seen = BTreeMap::new();
        for end in ends {
            let id: u64 = end.attributes.value("job").unwrap().parse().unwrap();
            let Usage { queries, rows, external_calls, unmetered, .. } = end.usage;
            let expected = (id % 13 + 1, id % 13, id % 5, 0);
            assert_eq!((queries, rows, external_calls, unmetered), expected, "job {id}");
            assert_eq!(end.outcome, Outcome::Ok);
            assert!(seen.insert(id, queries).is_none());
        }
        assert_eq!(seen.len(), 1_000);
        let over = seen.values().filter(|queries| **queries > 10).count();
        assert_eq!(ledger.violations().len(), over);
        for violation in ledger.violations() {
            let id: u64 = violation.attributes.value("job").unwrap().parse().unwrap();
            assert!(seen[&id] > 10 && violation.resource == Resource::Queries, "{violation}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_job_that_panics_is_reported_and_the_worker_lives() {
    let ledger = Ledger::default();
    let (send, jobs) = mpsc::channel(16);
    let worker = tokio::spawn(worker(Arc::new(Mutex::new(jobs))));
    for id in 0..5 {
        let job = async move {
            query("SELECT 1").unwrap();
            tokio::task::yield_now().await;
            match id {
                1 => panic!("on purpose"),
                2 => std::future::pending().await,
                _ => query("SELECT 1").unwrap(),
            }
        };
        let job = job.budgeted("job", Budget::new().total_time(ms(100)));
        assert!(send.send(job.with_reporter(ledger.clone())).await.is_ok());
    }
    drop(send);
    worker.await.unwrap();
    use Outcome::{Cut, Ok, Panicked};
    assert_eq!(ledger.outcomes(), [Ok, Panicked, Cut, Ok, Ok]);
    let queries: Vec<_> = ledger.ends().iter().map(|end| end.usage.queries).collect();
    assert_eq!(queries, [2, 1, 1, 2, 2]);
    assert_eq!(Usage::current(), None);
}

#[tokio::test(start_paused = true)]
async fn each_tick_of_an_interval_is_a_unit_of_work() {
    let ledger = Ledger::default();
    let reporter = ledger.clone();
    let ticking = async move {
        let mut interval = tokio::time::interval(ms(1_000));
        for tick in 0..4_u64 {
            interval.tick().await;
            let sweep = async {
                for _ in 0..tick {
                    query("DELETE FROM sessions").unwrap();
                }
            };
            let sweep = sweep.budgeted("sweep", Budget::new().queries(2));
            sweep.with_reporter(reporter.clone()).await.unwrap();
        }
    };
    tokio::spawn(ticking).await.unwrap();
    let queries: Vec<_> = ledger.ends().iter().map(|end| end.usage.queries).collect();
    assert_eq!(queries, [0, 1, 2, 3]);
    assert_eq!(ledger.messages().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_set_of_tasks_can_hold_units_of_work_and_be_aborted() {
    let ledger = Ledger::default();
    let mut set = JoinSet::new();
    for n in 0..3_u64 {
        let job = async move {
            query("SELECT 1").unwrap();
            tokio::time::sleep(ms(100 * n)).await;
        };
        set.spawn(job.budgeted("job", Budget::new()).with_reporter(ledger.clone()));
    }
    set.join_next().await.unwrap().unwrap().unwrap();
    set.join_next().await.unwrap().unwrap().unwrap();
    set.shutdown().await;
    assert_eq!(ledger.outcomes(), [Outcome::Ok, Outcome::Ok, Outcome::Cancelled]);
}

/// What the docs of the layer say about apalis.
fn describe(job: &Task<u64>) -> Attributes {
    let id = job.task_id().map(ToString::to_string).unwrap_or_default();
    Attributes::new().with("job", id).with("attempt", job.attempt() + 1)
}

#[tokio::test(start_paused = true)]
async fn a_job_that_apalis_tries_again_by_itself_is_told_by_its_attempt() {
    async fn handle(_: u64, attempt: Attempt, worker: WorkerContext) -> Result<(), BoxDynError> {
        query("SELECT 1")?;
        match attempt.current() {
            1 => std::future::pending().await,
            2 => Err("fails as well".into()),
            _ => Ok(worker.stop()?),
        }
    }

    let ledger = Ledger::default();
    let mut storage = MemoryStorage::new();
    storage.push_task(TaskBuilder::new(0).task_id(TaskId::from_int(7)).build()).await.unwrap();
    let layer = TaskBudgetLayer::new("sync", Budget::new().total_time(ms(100)))
        .with_attributes(describe)
        .with_reporter(ledger.clone());
    let handler = layer.layer(task_fn::<_, u64, (Attempt, WorkerContext)>(handle));
    let worker = WorkerBuilder::new("worker").backend(storage).retry(RetryPolicy::retries(5));
    worker.build(handler).run().await.unwrap();

    let ends = ledger.ends();
    let told: Vec<_> = ends.iter().map(|end| (end.attributes.to_string(), end.outcome)).collect();
    let expected = [Outcome::Cut, Outcome::Error, Outcome::Ok];
    let expected = (1..).zip(expected).map(|(n, outcome)| (format!("job=7 attempt={n}"), outcome));
    assert_eq!(told, expected.collect::<Vec<_>>());
    let [violation] = &ledger.violations()[..] else { panic!("one violation") };
    assert_eq!(violation.attributes, ends[0].attributes);
}

#[tokio::test]
async fn a_job_that_fails_in_apalis_is_an_error_and_its_numbers_are_its_own() {
    static LEFT: AtomicU64 = AtomicU64::new(10);

    async fn handle(n: u64, worker: WorkerContext) -> Result<(), BoxDynError> {
        for _ in 0..n {
            query("SELECT 1")?;
            tokio::task::yield_now().await;
        }
        if LEFT.fetch_sub(1, Relaxed) == 1 {
            worker.stop()?;
        }
        if n == 3 { Err("three is too many".into()) } else { Ok(()) }
    }

    let ledger = Ledger::default();
    let mut storage = MemoryStorage::new();
    for n in 0..10 {
        let task = TaskBuilder::new(n).task_id(TaskId::from_int(100 + n)).build();
        storage.push_task(task).await.unwrap();
    }
    let layer = TaskBudgetLayer::new("count", Budget::new().queries(7))
        .with_attributes(describe)
        .with_reporter(ledger.clone());
    let handler = layer.layer(task_fn(handle));
    WorkerBuilder::new("worker").backend(storage).build(handler).run().await.unwrap();

    let mut ends = ledger.ends();
    ends.sort_by_key(|end| end.usage.queries);
    for (n, end) in (0..).zip(&ends) {
        assert_eq!(end.usage.queries, n);
        assert_eq!(end.attributes.to_string(), format!("job={} attempt=1", 100 + n));
        assert_eq!(end.outcome, if n == 3 { Outcome::Error } else { Outcome::Ok });
    }
    assert_eq!(ends.len(), 10);
    assert_eq!(ledger.messages().len(), 2);
}
