//! Redis: the count against what `MONITOR` shows.

use futures_util::StreamExt;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use redis::aio::{ConnectionLike, Monitor};
use redis::{AsyncCommands, Client, Script, cmd, pipe};
use request_budget::redis::Connection;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage};

use crate::sql::usage_of;
use crate::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_REDIS_URL",
        &[
            ("redis_counts_what_the_server_executes_on_one_thread", |url| equal(url, 0)),
            ("redis_counts_what_the_server_executes_on_two_threads", |url| equal(url, 2)),
            ("redis_fifty_requests_at_once_are_told_apart", fifty_at_once),
            ("redis_command_past_a_hard_limit_never_reaches_the_server", refused),
            ("redis_n_plus_one_in_the_cache_is_found", n_plus_one),
            ("redis_connection_manager_is_counted", manager),
            ("redis_command_that_fails_or_is_given_up_is_counted", failed),
        ],
    );
}

/// What the server executes on keys with a prefix of their own, so that tests run side by side.
struct Witness {
    monitor: Monitor,
    prefix: &'static str,
    control: redis::aio::MultiplexedConnection,
    marks: u64,
}

impl Witness {
    async fn new(client: &Client, prefix: &'static str) -> Self {
        let monitor = client.get_async_monitor().await.expect("connects");
        let control = client.get_multiplexed_async_connection().await.expect("connects");
        Self { monitor, prefix, control, marks: 0 }
    }

    /// How many commands it has executed since it was asked last. Those of scripts are left out.
    async fn seen(&mut self) -> u64 {
        // The server shows commands in the order in which it executes them.
        self.marks += 1;
        let mark = format!("{}-mark-{}", self.prefix, self.marks);
        cmd("PING").arg(&mark).exec_async(&mut self.control).await.expect("answers");
        let mut lines = self.monitor.on_message::<String>();
        let mut seen = 0;
        while let Some(line) = lines.next().await {
            if line.contains(&mark) {
                return seen;
            }
            let is_ours = line.contains(&format!("\"{}:", self.prefix));
            seen += u64::from(is_ours && !line.contains(" lua] "));
        }
        unreachable!("the server has hung up")
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Get,
    Set,
    Mget,
    WrongType,
    Pipeline(usize),
    Transaction(usize),
    Script,
    Scan,
    NeverPolled,
    Joined(usize),
    Carried,
    NotCarried,
}

fn programs() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Get),
        2 => Just(Step::Set),
        1 => Just(Step::Mget),
        1 => Just(Step::WrongType),
        1 => (1..5_usize).prop_map(Step::Pipeline),
        1 => (1..5_usize).prop_map(Step::Transaction),
        1 => Just(Step::Script),
        1 => Just(Step::Scan),
        1 => Just(Step::NeverPolled),
        1 => (2..5_usize).prop_map(Step::Joined),
        1 => Just(Step::Carried),
        1 => Just(Step::NotCarried),
    ];
    prop::collection::vec(step, 1..10)
}

/// What the program itself knows of what it did.
#[derive(Debug, Default)]
struct Done {
    /// Commands on our keys that are no round trip of their own, or none of the work.
    uncounted: u64,
    /// Round trips that the witness does not know for ours.
    unseen: u64,
}

async fn run_program<C>(
    steps: &[Step],
    cache: &Connection<C>,
    prefix: &'static str,
    done: &mut Done,
) where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    let key = move |id: usize| format!("{prefix}:user:{id}");
    let get = |id: usize| {
        let mut cache = cache.clone();
        async move { cache.get::<_, Option<String>>(key(id)).await.expect("gets") }
    };
    let mut cache = cache.clone();
    for step in steps {
        match *step {
            Step::Get => drop(get(1).await),
            Step::Set => cache.set::<_, _, ()>(key(2), "secret").await.expect("sets"),
            Step::Mget => {
                let keys = [key(1), key(2)];
                let all: Vec<Option<String>> = cache.mget(&keys).await.expect("gets");
                assert_eq!(all.len(), 2);
            }
            Step::WrongType => {
                cache.set::<_, _, ()>(key(3), "text").await.expect("sets");
                cache.lpush::<_, _, ()>(key(3), 1).await.expect_err("it is no list");
            }
            Step::Pipeline(count) => {
                let mut pipeline = pipe();
                (0..count).for_each(|id| drop(pipeline.get(key(id)).clone()));
                pipeline.exec_async(&mut cache).await.expect("executes");
                done.uncounted += count as u64 - 1;
            }
            Step::Transaction(count) => {
                let mut pipeline = pipe();
                pipeline.atomic();
                (0..count).for_each(|id| drop(pipeline.get(key(id)).clone()));
                pipeline.exec_async(&mut cache).await.expect("executes");
                done.uncounted += count as u64 - 1;
            }
            Step::Script => {
                let script = Script::new("return redis.call('GET', KEYS[1])");
                let mut script = script.prepare_invoke();
                script.key(key(1));
                // The server knows it, or is given it and asked again.
                script.load_async(&mut cache).await.map(drop).expect("loads");
                done.unseen += 1;
                script.invoke_async::<()>(&mut cache).await.expect("executes");
            }
            Step::Scan => {
                let mut all =
                    cache.scan_match::<_, String>(format!("{prefix}:*")).await.expect("scans");
                while all.next_item().await.transpose().expect("scans").is_some() {}
            }
            Step::NeverPolled => drop(get(1)),
            Step::Joined(count) => drop(join_all((0..count).map(get)).await),
            Step::Carried => {
                drop(tokio::spawn(get(1).in_current_budget()).await.expect("no panic"));
            }
            Step::NotCarried => {
                drop(tokio::spawn(get(1)).await.expect("no panic"));
                done.uncounted += 1;
            }
        }
    }
}

fn equal(url: &str, workers: usize) {
    let runtime = runtime(workers);
    let prefix = if workers == 0 { "budget-one" } else { "budget-two" };
    let (cache, witness) = runtime.block_on(async {
        let client = Client::open(url).expect("an address");
        let cache = client.get_multiplexed_async_connection().await.expect("connects");
        (Connection::new(cache), Witness::new(&client, prefix).await)
    });
    let witness = tokio::sync::Mutex::new(witness);
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&programs(), |program| {
        runtime.block_on(async {
            let mut witness = witness.lock().await;
            let mut done = Done::default();
            let usage = usage_of(run_program(&program, &cache, prefix, &mut done)).await;
            let seen = witness.seen().await;
            prop_assert_eq!(usage.cache_calls, seen + done.unseen - done.uncounted, "{:?}", usage);
            prop_assert_eq!((usage.queries, usage.external_calls), (0, 0));
            Ok::<_, TestCaseError>(())
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

async fn connect(url: &str) -> (Connection<redis::aio::MultiplexedConnection>, Client) {
    let client = Client::open(url).expect("an address");
    let cache = client.get_multiplexed_async_connection().await.expect("connects");
    (Connection::new(cache), client)
}

fn fifty_at_once(url: &str) {
    with_runtime(2, async {
        let (cache, client) = connect(url).await;
        let mut witness = Witness::new(&client, "budget-fifty").await;
        let request = |n: u64| {
            let mut cache = cache.clone();
            let work = async move {
                for id in 0..n % 7 {
                    let key = format!("budget-fifty:user:{id}");
                    cache.get::<_, Option<String>>(key).await.expect("gets");
                }
                for id in 0..n % 5 {
                    let key = format!("budget-fifty:post:{id}");
                    cache.get::<_, Option<String>>(key).await.expect("gets");
                }
                let usage = Usage::current().expect("inside");
                let expected = (n % 7 + n % 5, (n % 7).max(n % 5));
                assert_eq!((usage.cache_calls, usage.repeated_cache_calls), expected, "{n}");
                usage.cache_calls
            };
            tokio::spawn(work.budgeted("request", Budget::new()))
        };
        let mut all = 0;
        for request in join_all((0..50).map(request)).await {
            all += request.expect("no panic").expect("no limit");
        }
        assert_eq!(all, witness.seen().await);
    });
}

fn refused(url: &str) {
    with_runtime(0, async {
        let (cache, client) = connect(url).await;
        let mut witness = Witness::new(&client, "budget-refused").await;
        let (errors, mut error) = tokio::sync::mpsc::unbounded_channel();
        let work = {
            let mut cache = cache.clone();
            async move {
                loop {
                    if let Err(error) =
                        cache.get::<_, Option<String>>("budget-refused:user:1").await
                    {
                        errors.send(error).expect("somebody waits");
                    }
                }
            }
        };
        // A task that is carried along sees its error, where the work itself is cut.
        let (aborts, abort) = tokio::sync::oneshot::channel();
        let work = async move {
            aborts.send(tokio::spawn(work.in_current_budget()).abort_handle()).expect("waits");
            std::future::pending::<()>().await;
        };
        let budget = Budget::new().cache_calls(Limit::hard(3));
        let cut = work.budgeted("loop", budget).await.expect_err("is cut");
        assert!(cut.to_string().starts_with("loop was cut: 4 cache calls, limit 3"), "{cut}");
        let error = error.recv().await.expect("refused");
        abort.await.expect("sent").abort();
        let found = Cut::find(&error).expect("holds the cut");
        assert_eq!(found.violation().resource, Resource::CacheCalls);
        assert_eq!(witness.seen().await, 3);
    });
}

fn n_plus_one(url: &str) {
    with_runtime(0, async {
        let (cache, _) = connect(url).await;
        let load = async |together: bool| {
            let mut cache = cache.clone();
            let keys: Vec<_> = (0..20).map(|id| format!("budget-n:author:{id}")).collect();
            match together {
                true => drop(cache.mget::<_, Vec<Option<String>>>(&keys).await.expect("gets")),
                false => {
                    for key in &keys {
                        cache.get::<_, Option<String>>(key).await.expect("gets");
                    }
                }
            }
        };
        let limits = || Budget::new().cache_calls(5).repeated_cache_calls(2);
        measure(load(true)).await.assert_within(limits());
        let record = measure(load(false)).await;
        let within = std::panic::AssertUnwindSafe(|| record.assert_within(limits()));
        let panic = std::panic::catch_unwind(within).expect_err("it is over");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains("`GET budget-n:author:*` was sent 20 times"), "{text}");
        assert!(text.contains("tests/databases/redis.rs:"), "{text}");
    });
}

fn manager(url: &str) {
    with_runtime(0, async {
        let client = Client::open(url).expect("an address");
        let manager = client.get_connection_manager().await.expect("connects");
        let cache = Connection::new(manager);
        let mut witness = Witness::new(&client, "budget-manager").await;
        let steps = [Step::Get, Step::Set, Step::Pipeline(3), Step::Joined(4), Step::Carried];
        let mut done = Done::default();
        let usage = usage_of(run_program(&steps, &cache, "budget-manager", &mut done)).await;
        assert_eq!(usage.cache_calls, 8);
        assert_eq!(usage.cache_calls, witness.seen().await - done.uncounted);
    });
}

fn failed(url: &str) {
    with_runtime(0, async {
        let client = Client::open(url).expect("an address");
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(std::time::Duration::from_millis(20)));
        let cache = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut cache = Connection::new(cache.expect("connects"));
        let usage = usage_of(async {
            // Nobody pushes anything.
            let error = cache.blpop::<_, ()>("budget-failed:list:1", 0.5).await;
            assert!(error.expect_err("takes too long").is_timeout());
            let wrong = cmd("NONSENSE").exec_async(&mut cache).await;
            wrong.expect_err("no such command, or no answer in time");
        })
        .await;
        assert_eq!(usage.cache_calls, 2);
        assert!(usage.cache_time >= std::time::Duration::from_millis(20), "{usage}");
    });
}
