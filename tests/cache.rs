//! `redis::Connection` around a connection that is none: what is counted, timed and refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{AsyncCommands, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value, pipe};
use request_budget::redis::Connection;
use request_budget::report::{Report, Reporter};
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage, Violation};
use tokio::time::{sleep, timeout};

const MS: Duration = Duration::from_millis(1);
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// Answers each round trip after ten milliseconds, and counts them.
#[derive(Debug, Clone, Default)]
struct Slow(Arc<AtomicU32>);

impl ConnectionLike for Slow {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async {
            sleep(ROUND_TRIP).await;
            Ok(Value::Okay)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async move {
            sleep(ROUND_TRIP).await;
            Ok(vec![Value::Okay; count])
        })
    }

    fn get_db(&self) -> i64 {
        7
    }
}

fn cache() -> (Connection<Slow>, Arc<AtomicU32>) {
    let slow = Slow::default();
    (Connection::new(slow.clone()), slow.0)
}

async fn get(cache: &mut Connection<Slow>, key: &str) -> RedisResult<()> {
    cache.get(key).await
}

#[tokio::test(start_paused = true)]
async fn commands_and_pipelines_are_round_trips_with_their_time() {
    let (mut cache, sent) = cache();
    assert_eq!(cache.get_db(), 7);
    get(&mut cache, "outside:1").await.unwrap();
    let work = async {
        for id in 1..=3 {
            get(&mut cache, &format!("user:{id}")).await.unwrap();
        }
        let mut pipeline = pipe();
        pipeline.get("a").get("b").get("c").ignore();
        pipeline.exec_async(&mut cache).await.unwrap();
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.cache_calls, usage.repeated_cache_calls), (4, 3));
    assert_eq!((usage.cache_time, usage.queries, usage.external_calls), (40 * MS, 0, 0));
    assert!(usage.to_string().contains("4 cache calls (40ms)"), "{usage}");
    assert_eq!(sent.load(Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_dropped_midway_counts_with_its_time() {
    let (mut cache, _) = cache();
    let work = async {
        timeout(4 * MS, get(&mut cache, "user:1")).await.unwrap_err();
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!(usage.cache_calls, 1);
    assert!((4 * MS..=5 * MS).contains(&usage.cache_time), "{usage:?}");
    // And what the end of the work cuts off.
    let seen = Arc::new(Mutex::new(None));
    struct Last(Arc<Mutex<Option<(Usage, String)>>>);
    impl Reporter for Last {
        fn violation(&self, _: &Violation) {}

        fn finished(&self, report: &Report<'_>) {
            let commands = report.cache_calls().map(|tally| tally.text).collect();
            *self.0.lock().unwrap() = Some((report.usage(), commands));
        }
    }
    let work = async { get(&mut cache, "user:1").await };
    let budget = Budget::new().total_time(6 * MS);
    work.budgeted("work", budget).with_reporter(Last(seen.clone())).await.unwrap_err();
    let (usage, commands) = seen.lock().unwrap().take().unwrap();
    assert_eq!((usage.cache_calls, &*commands), (1, "GET user:*"));
    assert!(usage.cache_time >= 6 * MS, "{usage:?}");
}

#[tokio::test(start_paused = true)]
async fn an_inner_and_a_carried_task_count_for_the_outer_work() {
    let (cache, _) = cache();
    let select = |key: &'static str| {
        let mut cache = cache.clone();
        async move { get(&mut cache, key).await.unwrap() }
    };
    let outer = async {
        select("user:1").budgeted("inner", Budget::new()).await.unwrap();
        tokio::spawn(select("user:2").in_current_budget()).await.unwrap();
        tokio::spawn(select("user:3")).await.unwrap();
        Usage::current().unwrap()
    };
    let usage = outer.budgeted("outer", Budget::new()).await.unwrap();
    assert_eq!((usage.cache_calls, usage.repeated_cache_calls), (2, 2));
    assert_eq!(usage.cache_time, 20 * MS);
}

#[tokio::test(start_paused = true)]
async fn what_a_hard_limit_forbids_is_not_sent() {
    for (budget, most) in [
        (Budget::new().cache_calls(Limit::hard(3)), 3),
        (Budget::new().repeated_cache_calls(Limit::hard(2)), 2),
        (Budget::new().cache_time(Limit::hard(15 * MS)), 2),
    ] {
        let (mut cache, sent) = cache();
        let mut errors = Vec::new();
        let work = async {
            // Tries until it succeeds, which it never does.
            loop {
                if let Err(error) = get(&mut cache, "user:1").await {
                    errors.push(error);
                }
            }
        };
        let work = work.budgeted("poll", budget.clone());
        let never: Result<(), Cut> = work.await;
        let cut = never.unwrap_err();
        assert!(cut.to_string().contains(": `GET user:*`, "), "{cut}");
        assert_eq!(sent.load(Relaxed), most, "{budget}");
        assert!(errors.is_empty(), "the work is cut before the loop sees its error: {errors:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_refused_command_holds_the_cut() {
    let (cache, sent) = cache();
    let child = {
        let mut cache = cache.clone();
        async move {
            get(&mut cache, "user:1").await.unwrap();
            let error = get(&mut cache, "user:2").await.unwrap_err();
            let mut pipeline = pipe();
            let in_pipeline = pipeline.get("a").exec_async(&mut cache).await.unwrap_err();
            (error, in_pipeline)
        }
    };
    let work = async { tokio::spawn(child.in_current_budget()).await.unwrap() };
    let budget = Budget::new().cache_calls(Limit::hard(1));
    let mut cut_of = |error: &RedisError| {
        assert!(error.is_io_error());
        Cut::find(error).unwrap().violation().resource
    };
    // The parent is cut, so the child hands its errors over in another way.
    let (errors, received) = tokio::sync::oneshot::channel();
    let work = async move { drop(errors.send(work.await)) };
    drop(work.budgeted("work", budget).await);
    match received.await {
        Ok((error, in_pipeline)) => {
            assert_eq!([&error, &in_pipeline].map(&mut cut_of), [Resource::CacheCalls; 2]);
        }
        Err(_) => assert_eq!(sent.load(Relaxed), 1),
    }
    assert_eq!(sent.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_an_outer_limit_refuses_is_counted_nowhere() {
    let (mut cache, _) = cache();
    let inner = async {
        let asked = get(&mut cache, "user:1");
        let mut asked = std::pin::pin!(asked);
        assert!(futures_util::poll!(&mut asked).is_pending());
        let usage = Usage::current().unwrap();
        assert_eq!((usage.cache_calls, usage.repeated_cache_calls), (0, 0));
    };
    let inner = inner.budgeted("inner", Budget::new().repeated_cache_calls(Limit::hard(5)));
    let outer = async { drop(inner.await) };
    let outer = outer.budgeted("outer", Budget::new().cache_calls(Limit::hard(0)));
    assert!(
        outer.await.unwrap_err().to_string().starts_with("outer was cut: 1 cache call, limit 0")
    );
}

#[tokio::test(start_paused = true)]
async fn a_measurement_lists_the_commands() {
    let (mut cache, _) = cache();
    let record = measure(async {
        for id in 1..=3 {
            get(&mut cache, &format!("user:{id}")).await.unwrap();
        }
        get(&mut cache, "leaderboard").await.unwrap();
    })
    .await;
    record.assert_within(Budget::new().cache_calls(4).repeated_cache_calls(3));
    let all: Vec<_> =
        record.cache_calls().iter().map(|one| (&*one.text, one.executions, one.time)).collect();
    assert_eq!(all, [("GET leaderboard", 1, 10 * MS), ("GET user:*", 3, 30 * MS)]);
    let place = &record.cache_calls()[1].sites()[0].places[0];
    assert!(place.file.ends_with("tests/cache.rs"), "{place}");
    let within = || record.assert_within(Budget::new().repeated_cache_calls(1));
    let panic = catch_unwind(AssertUnwindSafe(within)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    let first = "3 cache calls of the same kind, limit 1: 2 too many\n";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("`GET user:*` was sent 3 times: ask for all keys at once"), "{text}");
    assert!(text.contains("\ncache calls: 4, 40ms\n     3x GET user:*"), "{text}");
}
