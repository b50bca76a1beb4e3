//! Requests that are ended at random points: the pool stays whole, and no scope is left behind.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetLayer, Limit, Usage, Violation};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Executor, Sqlite};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

const REQUESTS: usize = 10_000;
const CONNECTIONS: u32 = 3;

/// How a request is ended, unless it has ended by then.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// The client hangs up after so many polls.
    Dropped(u32),
    TimeIsUp(Duration),
    TooManyQueries(u64),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Select,
    Stream,
    Transfer,
    Yield,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => (0..12_u32).prop_map(Fate::Dropped),
        2 => (0..3_000_u64).prop_map(|micros| Fate::TimeIsUp(Duration::from_micros(micros))),
        1 => (0..8_u64).prop_map(Fate::TooManyQueries),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Select),
        Just(Step::Stream),
        Just(Step::Transfer),
        Just(Step::Yield)
    ];
    prop::collection::vec(step, 1..5)
}

async fn run(pool: &Pool<Sqlite>, steps: Vec<Step>) -> sqlx::Result<()> {
    for step in steps {
        match step {
            Step::Select => drop(sqlx::query("SELECT 1").fetch_all(pool).await?),
            Step::Stream => {
                let mut rows = pool.fetch("SELECT account FROM accounts");
                while rows.try_next().await?.is_some() {}
            }
            // A transaction that is undone midway leaves the sum as it is.
            Step::Transfer => {
                let mut transaction = pool.begin().await?;
                for amount in [1, -1] {
                    let transfer = "UPDATE accounts SET amount = amount + ? WHERE account = ?";
                    let transfer = sqlx::query(transfer).bind(amount).bind(amount);
                    transfer.execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
            }
            Step::Yield => tokio::task::yield_now().await,
        }
    }
    Ok(())
}

/// Polls a future at most so often; `None` if it was not done by then.
struct AtMost<F> {
    future: Pin<Box<F>>,
    polls: u32,
}

impl<F: Future> Future for AtMost<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let Some(left) = self.polls.checked_sub(1) else { return Poll::Ready(None) };
        self.polls = left;
        self.future.as_mut().poll(cx).map(Some)
    }
}

#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<(Outcome, u64)>>>);

impl Reporter for Ends {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.lock().unwrap().push((report.outcome(), report.usage().queries));
    }
}

/// A pool of connections, each with a database of its own in memory, in which the amounts add up to
/// nothing.
async fn pool() -> Pool<Sqlite> {
    let options = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(CONNECTIONS)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection
                    .execute("CREATE TABLE accounts (account INTEGER, amount INTEGER)")
                    .await?;
                connection.execute("INSERT INTO accounts VALUES (1, 0), (-1, 0)").await?;
                Ok(())
            })
        })
        .connect_with(SqliteConnectOptions::new());
    options.await.unwrap().into()
}

async fn request(pool: Pool<Sqlite>, ends: Ends, steps: Vec<Step>, fate: Fate, in_body: bool) {
    let budget = match fate {
        Fate::Dropped(_) => Budget::new(),
        Fate::TimeIsUp(time) => Budget::new().total_time(time),
        Fate::TooManyQueries(most) => Budget::new().queries(Limit::hard(most)),
    };
    let layer = BudgetLayer::new(budget).with_reporter(ends);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (pool, steps) = (pool.clone(), steps.clone());
        async move {
            // Half of them do their work in the body.
            let (first, then) = if in_body { (vec![], steps) } else { (steps, vec![]) };
            drop(run(&pool, first).await);
            let body = futures_util::stream::once(async move {
                drop(run(&pool, then).await);
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"done")))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(body)))
        }
    }));
    let exchange = async {
        let answer = service.oneshot(Request::new(())).await.unwrap();
        drop(Box::pin(answer.into_body()).collect().await);
    };
    let polls = if let Fate::Dropped(polls) = fate { polls } else { u32::MAX };
    AtMost { future: Box::pin(exchange), polls }.await;
}

async fn many_requests() {
    let (pool, ends) = (pool().await, Ends::default());
    let mut runner = TestRunner::deterministic();
    let mut running = JoinSet::new();
    let mut never_called = 0;
    for _ in 0..REQUESTS {
        let (steps, fate, in_body) =
            (steps(), fate(), any::<bool>()).new_tree(&mut runner).unwrap().current();
        // Dropped before its first poll it never reached the service.
        never_called += usize::from(matches!(fate, Fate::Dropped(0)));
        running.spawn(request(pool.clone(), ends.clone(), steps, fate, in_body));
        if running.len() >= 16 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(result) = running.join_next().await {
        result.unwrap();
    }
    let ends = ends.0.lock().unwrap().clone();
    assert_eq!(ends.len() + never_called, REQUESTS, "each is reported once");
    let count = |outcome| ends.iter().filter(|(it, _)| *it == outcome).count();
    let counts = [Outcome::Ok, Outcome::Cut, Outcome::Cancelled].map(count);
    assert_eq!(counts.iter().sum::<usize>(), ends.len());
    assert!(counts.iter().all(|count| *count > REQUESTS / 10), "{counts:?}");

    // Every connection comes back, with no transaction open and no half of one done.
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = pool.unmetered().acquire().await.unwrap();
        let sum = "SELECT count(*), sum(amount) FROM accounts";
        let sum: (i64, i64) = sqlx::query_as(sum).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(sum, (2, 0));
        let begin = connection.execute("BEGIN IMMEDIATE").await;
        begin.expect("no transaction is open");
        connection.execute("ROLLBACK").await.unwrap();
        all.push(connection);
    }
    assert_eq!(pool.size(), CONNECTIONS);
}

#[test]
fn ten_thousand_requests_ended_at_random_on_one_thread_leave_the_pool_whole() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(many_requests());
    assert_eq!(Usage::current(), None);
}

#[test]
fn ten_thousand_requests_ended_at_random_on_two_threads_leave_no_scope() {
    const WORKERS: usize = 2;
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::spawn(many_requests()).await.unwrap();
        // One task on each worker at once.
        let (all, left) = (Arc::new(Barrier::new(WORKERS)), Arc::new(AtomicU64::new(0)));
        let looks = (0..WORKERS).map(|_| {
            let (all, left) = (Arc::clone(&all), Arc::clone(&left));
            tokio::spawn(async move {
                left.fetch_add(u64::from(Usage::current().is_some()), Relaxed);
                all.wait();
            })
        });
        for look in looks.collect::<Vec<_>>() {
            look.await.unwrap();
        }
        assert_eq!(left.load(Relaxed), 0, "no worker thread keeps a scope");
    });
}
