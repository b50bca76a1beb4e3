//! A job queue on PostgreSQL: jobs under budgets fail and are tried again as the queue does it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use apalis::prelude::*;
use apalis_postgres::{Config, PostgresStorage};
use request_budget::report::{Attributes, Outcome, Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Budget, Resource, TaskBudgetLayer, Violation};
use sqlx::{PgPool, Postgres};
use tokio::time::{Interval, MissedTickBehavior};
use tower::Layer;

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("jobs_over_their_time_fail_and_are_tried_again_on_one_thread", |url| {
                with_runtime(0, over_their_time(url, "budget_one"))
            }),
            ("jobs_over_their_time_fail_and_are_tried_again_on_two_threads", |url| {
                with_runtime(2, over_their_time(url, "budget_two"))
            }),
        ],
    );
}

/// Each violation; and of each run: name, id, attempt, outcome, statements.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Vec<Violation>, Vec<Run>)>>);

type Run = (String, String, String, Outcome, u64);

impl Reporter for Seen {
    fn violation(&self, violation: &Violation) {
        self.0.lock().expect("not poisoned").0.push(violation.clone());
    }

    fn finished(&self, report: &Report<'_>) {
        let value = |name| report.attributes().value(name).unwrap_or_default().to_owned();
        let (job, attempt) = (value("job"), value("attempt"));
        let queries = report.usage().queries;
        let run = (report.work().to_string(), job, attempt, report.outcome(), queries);
        self.0.lock().expect("not poisoned").1.push(run);
    }
}

fn describe<T>(job: &Task<T>) -> Attributes {
    let id = job.task_id().map(ToString::to_string).unwrap_or_default();
    Attributes::new().with("job", id).with("attempt", job.attempt() + 1)
}

/// Is stuck in a statement, for as many attempts as it is told to.
async fn mail(
    stuck: usize,
    attempt: Attempt,
    pool: Data<Pool<Postgres>>,
) -> Result<(), BoxDynError> {
    let seconds = if attempt.current() <= stuck { 30.0 } else { 0.0 };
    sqlx::query("SELECT pg_sleep($1)").bind(seconds).execute(&*pool).await?;
    Ok(())
}

/// Asks once for each, where it should ask once for all.
async fn report(items: usize, pool: Data<Pool<Postgres>>) -> Result<(), BoxDynError> {
    for item in 0..items {
        sqlx::query("SELECT $1::int8").bind(item as i64).execute(&*pool).await?;
    }
    Ok(())
}

async fn over_their_time(url: &str, queue: &str) {
    let plain = PgPool::connect(url).await.expect("connects");
    PostgresStorage::setup(&plain).await.expect("makes its tables");
    let (mails, reports) = (format!("{queue}_mail"), format!("{queue}_report"));
    sqlx::query("DELETE FROM apalis.jobs WHERE job_type IN ($1, $2)")
        .bind(&mails)
        .bind(&reports)
        .execute(&plain)
        .await
        .expect("leaves nothing of an earlier run");
    let seen = Seen::default();
    let pool = Pool::from(plain.clone());

    let storage = |queue: &str| {
        PostgresStorage::<usize>::new(&plain).with_config(Config::default().queue(queue))
    };
    let mut queue = storage(&mails);
    for stuck in [0, 1, 9] {
        let job = TaskBuilder::new(stuck).max_attempts(2).build();
        queue.push_task(job).await.expect("pushes");
    }
    storage(&reports).push(30).await.expect("pushes");

    // Of its own in each process: the queue takes a worker of the same name for one that lives.
    let worker = |queue: &str| format!("{queue}_{}", std::process::id());
    let budget = Budget::new().queries(5).total_time(Duration::from_millis(300));
    let layer =
        TaskBudgetLayer::new("mail", budget).with_attributes(describe).with_reporter(seen.clone());
    let mails_done = WorkerBuilder::new(worker(&mails))
        .backend(queue.poll_with_strategy(Often::new()))
        .data(pool.clone())
        .on_event(stop_after(5))
        .build(layer.layer(task_fn::<_, usize, (Attempt, Data<Pool<Postgres>>)>(mail)))
        .run();
    let layer = TaskBudgetLayer::new("report", Budget::new().repeated_queries(10))
        .with_attributes(describe)
        .with_reporter(seen.clone());
    let reports_done = WorkerBuilder::new(worker(&reports))
        .backend(storage(&reports).poll_with_strategy(Often::new()))
        .data(pool)
        .on_event(stop_after(1))
        .build(layer.layer(task_fn(report)))
        .run();
    let (mails_done, reports_done) = tokio::join!(mails_done, reports_done);
    mails_done.expect("the worker lives");
    reports_done.expect("the worker lives");

    let rows: Vec<(String, i32, String, String)> = sqlx::query_as(
        "SELECT status, attempts, id, last_result::text FROM apalis.jobs WHERE job_type = $1
         ORDER BY convert_from(job, 'UTF8')",
    )
    .bind(&mails)
    .fetch_all(&plain)
    .await
    .expect("reads the queue");
    let [fine, once, always] = &*rows else { panic!("{rows:?}") };
    assert_eq!((fine.0.as_str(), fine.1), ("Done", 1));
    assert_eq!((once.0.as_str(), once.1), ("Done", 2), "tried again, and then it was well");
    assert_eq!((always.0.as_str(), always.1), ("Failed", 2), "no attempt is left");
    assert!(always.3.contains("was cut: ") && always.3.contains("limit 300ms"), "{}", always.3);

    let (violations, mut runs) = std::mem::take(&mut *seen.0.lock().expect("not poisoned"));
    let (late, repeated): (Vec<_>, Vec<_>) =
        violations.iter().partition(|v| v.resource == Resource::TotalTime);
    let mut late: Vec<_> = late
        .iter()
        .map(|v| (v.work.as_str(), v.attributes.value("job"), v.attributes.value("attempt")))
        .collect();
    late.sort_unstable();
    let mut expected = [
        ("mail", Some(once.2.as_str()), Some("1")),
        ("mail", Some(always.2.as_str()), Some("1")),
        ("mail", Some(always.2.as_str()), Some("2")),
    ];
    expected.sort_unstable();
    assert_eq!(late, expected);
    let [repeated] = &*repeated else { panic!("{violations:?}") };
    let (work, resource) = (repeated.work.as_str(), repeated.resource);
    assert_eq!((work, resource), ("report", Resource::RepeatedQueries));

    let run = |id: &str, attempt: &str, outcome| {
        ("mail".to_owned(), id.to_owned(), attempt.to_owned(), outcome, 1)
    };
    let report = runs.iter().position(|run| run.0 == "report").expect("it ran");
    let (.., attempt, outcome, queries) = runs.swap_remove(report);
    assert_eq!((attempt.as_str(), outcome, queries), ("1", Outcome::Ok, 30));
    let mut expected = [
        run(&fine.2, "1", Outcome::Ok),
        run(&once.2, "1", Outcome::Cut),
        run(&once.2, "2", Outcome::Ok),
        run(&always.2, "1", Outcome::Cut),
        run(&always.2, "2", Outcome::Cut),
    ];
    let order = |a: &Run, b: &Run| (&a.1, &a.2).cmp(&(&b.1, &b.2));
    expected.sort_by(order);
    runs.sort_by(order);
    assert_eq!(runs, expected);
}

/// Looks for jobs every 20 ms.
///
/// The queue's own way to do that may sleep for half a minute, in 1.0.0: it sets the next alarm
/// only when it is asked again, which nobody does if the last one rang in the poll that found no
/// job.
struct Often(Interval);

impl Often {
    fn new() -> Self {
        let mut often = tokio::time::interval(Duration::from_millis(20));
        often.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(often)
    }
}

impl PollStrategy for Often {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let mut rang = Poll::Pending;
        while self.0.poll_tick(cx).is_ready() {
            rang = Poll::Ready(Some(()));
        }
        rang
    }
}

/// Stops the worker when so many runs have ended; what they have come to is stored before it ends.
fn stop_after(runs: u32) -> impl Fn(&WorkerContext, &Event) + Send + Sync + 'static {
    let ended = AtomicU32::new(0);
    move |worker, event| {
        if matches!(event, Event::Success(_) | Event::Error(_))
            && ended.fetch_add(1, Relaxed) + 1 == runs
        {
            worker.stop().expect("it runs");
        }
    }
}
