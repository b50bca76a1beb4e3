//! What runs beside a measurement: the work's own tasks are suspected, those of others are not. One
//! test only: tests beside it would spawn tasks at the same moment.
#![expect(clippy::unwrap_used, reason = "a test may panic; not all of this is in test functions")]

use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;

use futures_util::future::BoxFuture;
use futures_util::poll;
use request_budget::db::Query;
use request_budget::testing::{Record, measure, unrelated};
use request_budget::{Budget, BudgetExt};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::yield_now;

#[test]
fn own_tasks_are_suspected_and_those_of_others_are_not() {
    what_was_there_before_is_of_others();
    tests_on_one_runtime_do_not_fail_each_other();
    what_the_work_spawns_is_suspected();
    what_is_declared_unrelated_is_not_suspected();
}

/// What a failing assertion says.
fn failure(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("it passes, blind");
    *panic.downcast::<String>().unwrap()
}

fn execute(text: &str) {
    drop(Query::start(text).unwrap());
}

fn runtimes() -> [Runtime; 2] {
    let mut several = Builder::new_multi_thread();
    several.worker_threads(2);
    [Builder::new_current_thread(), several]
        .map(|mut builder| builder.enable_all().build().unwrap())
}

/// The statements that may be of the measured work, with how often.
fn suspected<T>(record: &Record<T>) -> Vec<(&str, u64)> {
    let elsewhere = record.elsewhere().iter();
    elsewhere.map(|statement| (&*statement.text, statement.executions)).collect()
}

/// Runs a future in a task, not carried along, to its end.
async fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(future).await.unwrap()
}

fn what_was_there_before_is_of_others() {
    for runtime in runtimes() {
        for is_budgeted in [false, true] {
            runtime.block_on(async {
                let (ask, mut asked) = tokio::sync::mpsc::channel::<oneshot::Sender<()>>(1);
                let poller = tokio::spawn(async move {
                    while let Some(answer) = asked.recv().await {
                        let tick = async { execute("SELECT 'poll'") };
                        match is_budgeted {
                            true => tick.budgeted("poll", Budget::new().queries(1)).await.unwrap(),
                            false => tick.await,
                        }
                        answer.send(()).unwrap();
                    }
                });
                let page = async {
                    for _ in 0..5 {
                        let (answer, answered) = oneshot::channel();
                        ask.send(answer).await.unwrap();
                        answered.await.unwrap();
                    }
                };
                let record = measure(page).await;
                assert_eq!(suspected(&record), []);
                record.assert_queries(0);
                record.assert_within(Budget::new().queries(0));
                drop(ask);
                poller.await.unwrap();
            });
        }
    }
}

fn tests_on_one_runtime_do_not_fail_each_other() {
    for runtime in runtimes() {
        let runtime = &runtime;
        for measures_first in [false, true].repeat(25) {
            thread::scope(|scope| {
                let (start, started) = oneshot::channel();
                let (end, ended) = oneshot::channel::<()>();
                // Threads that begin before and after the measurement.
                let (begin, begun) = mpsc::channel();
                let seed = move || {
                    runtime.block_on(async {
                        begin.send(()).unwrap();
                        execute("INSERT 1");
                        started.await.unwrap();
                        // On the test's own thread, in a task, in a task of a task, in a unit of
                        // work.
                        execute("INSERT 2");
                        run(async { execute("INSERT 3") }).await;
                        run(run(async { execute("INSERT 4") })).await;
                        let unit = async { execute("INSERT 5") }.budgeted("seed", Budget::new());
                        run(unit).await.unwrap();
                    });
                    end.send(()).unwrap();
                };
                let mut seed = Some(seed);
                if !measures_first {
                    scope.spawn(seed.take().unwrap());
                    begun.recv().unwrap();
                }
                // Polled once before the seeds begin, and once after they have ended: a poll in
                // between could have spawned what they spawn at that moment.
                let mut is_polled = false;
                let work = poll_fn(|_| match mem::replace(&mut is_polled, true) {
                    false => Poll::Pending,
                    true => Poll::Ready(()),
                });
                let record = runtime.block_on(async {
                    let mut measured = pin!(measure(work));
                    assert!(poll!(&mut measured).is_pending());
                    seed.map(|seed| scope.spawn(seed));
                    start.send(()).unwrap();
                    ended.await.unwrap();
                    measured.await
                });
                assert_eq!(suspected(&record), []);
                record.assert_queries(0);
            });
        }
    }
}

fn lose() {
    execute("SELECT 'lost'");
}

/// A way in which a statement gets lost, with its name.
type Way = (&'static str, fn() -> BoxFuture<'static, ()>);

/// Ways in which a statement gets lost: out of the scope of the work that issues it.
fn lost() -> Vec<Way> {
    vec![
        ("a task", || Box::pin(run(async { lose() }))),
        ("a task of a task", || Box::pin(run(run(async { lose() })))),
        ("a task of a task that waits", || {
            Box::pin(run(async {
                yield_now().await;
                run(async {
                    yield_now().await;
                    lose();
                })
                .await;
            }))
        }),
        ("a task of a carried task", || Box::pin(run(run(async { lose() }).in_current_budget()))),
        ("a closure for blocking work", || {
            Box::pin(async { tokio::task::spawn_blocking(lose).await.unwrap() })
        }),
        ("a future in a closure for blocking work", || {
            let runtime = Handle::current();
            Box::pin(async move {
                let query = move || runtime.block_on(async { lose() });
                tokio::task::spawn_blocking(query).await.unwrap();
            })
        }),
        ("a thread of its own", || {
            let runtime = Handle::current();
            Box::pin(async move {
                let query = move || runtime.block_on(async { lose() });
                thread::spawn(query).join().unwrap();
            })
        }),
        ("a thread that it waits for", || {
            let runtime = Handle::current();
            Box::pin(async move {
                let (end, ended) = oneshot::channel();
                let query = async { lose() };
                thread::spawn(move || {
                    runtime.block_on(query);
                    end.send(()).unwrap();
                });
                ended.await.unwrap();
            })
        }),
    ]
}

fn what_the_work_spawns_is_suspected() {
    for runtime in runtimes() {
        for (way, lose) in lost() {
            for own in [0, 1] {
                let work = async {
                    (0..own).for_each(|_| execute("SELECT 'own'"));
                    lose().await;
                };
                let record = runtime.block_on(measure(work));
                assert_eq!(record.usage().queries, own);
                assert_eq!(suspected(&record), [("SELECT 'lost'", 1)], "{way}");
                let said = failure(|| record.assert_queries(own));
                assert!(said.contains("while 1 statement ran in other tasks"), "{said}");
                assert!(said.contains("`testing::unrelated(..)`"), "{said}");
            }
        }
    }
}

fn what_is_declared_unrelated_is_not_suspected() {
    for runtime in runtimes() {
        // A thread begins anew, and what is carried along is of the work. On several threads a task
        // of a task may be spawned while the work is polled.
        let is_one_thread = runtime.metrics().num_workers() == 1;
        let is_covered = |way: &str| match is_one_thread {
            true => !way.contains("thread") && !way.contains("carried"),
            false => way == "a task",
        };
        for (way, lose) in lost().into_iter().filter(|(way, _)| is_covered(way)) {
            // The whole task, and a piece of it.
            let record = runtime.block_on(measure(async { run(unrelated(lose())).await }));
            assert_eq!(suspected(&record), [], "{way}");
            record.assert_queries(0);
        }
        let both = async {
            unrelated(async { execute("SELECT 1") }).await;
            execute("SELECT 2");
        };
        let record = runtime.block_on(measure(run(both)));
        assert_eq!(suspected(&record), [("SELECT 2", 1)]);
        // In the work itself it is counted.
        let record = runtime.block_on(measure(unrelated(async { execute("SELECT 1") })));
        assert_eq!(suspected(&record), []);
        record.assert_queries(1);
    }
}
