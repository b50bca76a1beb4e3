//! A worker on apalis and SQLite, with jobs that behave and jobs that do not.
//!
//! `cargo run --example worker` fills a queue, works it off, prints what each run used and which
//! limits it crossed, and ends: with 0 if every job did what it is here to show.

mod expected;
mod jobs;
mod ledger;
mod often;
mod store;
mod table;

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use apalis::prelude::*;
use apalis_sqlite::{Config, SqliteStorage};
use futures_util::FutureExt;
use request_budget::alloc::CountingAllocator;
use request_budget::report::{Attributes, Growth};
use request_budget::{Budget, TaskBudgetLayer};
use tower::{Layer, Service, service_fn};

use crate::jobs::Job;
use crate::ledger::Ledger;
use crate::often::Often;
use crate::store::Store;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    // One line for the panic that is there on purpose.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The budget of each kind of job.
fn budget(job: &Task<Job>) -> Budget {
    let usual = Budget::new()
        .queries(20)
        .repeated_queries(5)
        .slow_query(Duration::from_millis(150))
        .memory(1 << 20)
        .retained(64 << 10)
        .total_time(Duration::from_secs(20));
    match job.args {
        Job::SyncStock => usual.total_time(Duration::from_millis(300)),
        _ => usual,
    }
}

/// What tells one run from another.
fn describe(job: &Task<Job>) -> Attributes {
    let id = job.task_id().map(ToString::to_string).unwrap_or_default();
    Attributes::new().with("job", id).with("attempt", job.attempt().saturating_add(1))
}

async fn run() -> Result<(), Failure> {
    let store = Store::create().await?;
    let done = work_off(&store).await;
    store.remove().await;
    done
}

async fn work_off(store: &Store) -> Result<(), Failure> {
    SqliteStorage::setup(store.queue()).await?;
    let queue = SqliteStorage::new(store.queue())
        .with_config(Config::default().queue("shop").batch_size(4));
    for (job, attempts) in jobs::all() {
        queue.clone().push_task(TaskBuilder::new(job).max_attempts(attempts).build()).await?;
    }

    let ledger = Ledger::default();
    let noted = ledger.clone();
    let growth = Growth::new().bytes(1 << 20).with_listener(move |climb| noted.climb(climb));
    let layer = TaskBudgetLayer::new(|job: &Task<Job>| job.args.name(), budget)
        .with_attributes(describe)
        .with_reporter((growth, ledger.clone()));
    let mut jobs = layer.layer(task_fn::<_, Job, (Attempt, Data<_>)>(jobs::handle));
    // A panic is reported by the layer, and would end the worker if nobody stopped it.
    let jobs = service_fn(move |job: Task<Job>| {
        let run = AssertUnwindSafe(jobs.call(job)).catch_unwind();
        run.map(|done| done.unwrap_or_else(|_| Err("the job panicked".into())))
    });

    let worker = WorkerBuilder::new("worker")
        .backend(queue.poll_with_strategy(Often::new()))
        .data(store.pool())
        .on_event(stop_after(expected::RUNS))
        .build(jobs);
    let worked = tokio::time::timeout(Duration::from_secs(60), worker.run()).await;
    worked.map_err(|_| "the queue is not empty after a minute")??;

    let noted = ledger.take();
    println!("{}\n", table::table(&noted.runs));
    println!("Each violation, as it was reported at the moment of crossing:");
    let (imports, others): (Vec<_>, Vec<_>) =
        noted.violations().partition(|violation| violation.work == "import_prices");
    for violation in others {
        println!("{} {violation}", violation.severity.name());
    }
    if let Some((last, before)) = imports.split_last() {
        println!("{} {last}\n     and {} runs before it", last.severity.name(), before.len());
    }
    println!("\nWhat was told of memory that climbs run after run:");
    for climb in &noted.climbs {
        println!("{climb}");
    }
    expected::check(&noted, &store.results().await?)
}

/// Stops the worker when so many runs have ended.
fn stop_after(runs: usize) -> impl Fn(&WorkerContext, &Event) + Send + Sync + 'static {
    let ended = AtomicUsize::new(0);
    move |worker, event| {
        if matches!(event, Event::Success(_) | Event::Error(_))
            && ended.fetch_add(1, Relaxed).saturating_add(1) == runs
        {
            // It stops once; a second time would be the only error.
            drop(worker.stop());
        }
    }
}
