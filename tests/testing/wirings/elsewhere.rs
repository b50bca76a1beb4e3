//! Work that is done in other tasks, and in other runtimes.

use std::thread;

use request_budget::sqlx::Pool;
use request_budget::testing::measure;
use sqlx::Sqlite;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::{metered, plain, query, warns};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[tokio::test]
async fn a_metered_pool_on_the_runtime_of_a_thread() {
    let words =
        ["1 statement ran meanwhile outside of the runtime", "`request_budget::task::carried`"];
    warns("elsewhere::a_metered_pool_on_the_runtime_of_a_thread", &words, async {
        let pool = metered().await;
        let record = measure(async {
            let there = move || runtime().block_on(query(&pool));
            thread::spawn(there).join().unwrap();
        });
        record.await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
async fn a_metered_pool_on_the_runtime_of_a_thread_that_answers() {
    let words =
        ["1 statement ran meanwhile outside of the runtime", "`request_budget::task::carried`"];
    warns("elsewhere::a_metered_pool_on_the_runtime_of_a_thread_that_answers", &words, async {
        let pool = metered().await;
        let record = measure(async {
            query(&pool).await;
            let (answer, answered) = oneshot::channel();
            thread::spawn(move || {
                runtime().block_on(query(&pool));
                answer.send(()).unwrap();
            });
            answered.await.unwrap();
        });
        record.await.assert_queries(1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metered_pool_on_another_runtime_in_block_in_place() {
    let words = ["1 statement ran meanwhile outside of the runtime"];
    warns("elsewhere::a_metered_pool_on_another_runtime_in_block_in_place", &words, async {
        let (pool, other) = (metered().await, runtime());
        let record = measure(async {
            let there = async { other.spawn(async move { query(&pool).await }).await.unwrap() };
            tokio::task::block_in_place(|| other.block_on(there));
        });
        record.await.assert_queries(0);
        other.shutdown_background();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_in_place_itself_is_counted() {
    let (pool, other) = (metered().await, runtime());
    let record = measure(async {
        tokio::task::block_in_place(|| other.block_on(query(&pool)));
    });
    record.await.assert_queries(1);
    other.shutdown_background();
}

/// An actor that was there before; asks it once.
async fn ask_actor(other: Option<&Runtime>, pool: Pool<Sqlite>) -> impl Future<Output = ()> {
    let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
    let actor = async move {
        while let Some(answer) = asked.recv().await {
            query(&pool).await;
            answer.send(()).unwrap();
        }
    };
    match other {
        Some(other) => drop(other.spawn(actor)),
        None => drop(tokio::spawn(actor)),
    }
    async move {
        let (answer, answered) = oneshot::channel();
        ask.send(answer).await.unwrap();
        answered.await.unwrap();
    }
}

const ACTOR: [&str; 2] = ["1 statement of what was there before the work answered it", "an actor"];

#[tokio::test]
async fn an_actor_on_another_runtime() {
    warns("elsewhere::an_actor_on_another_runtime", &ACTOR, async {
        let other = runtime();
        let work = ask_actor(Some(&other), metered().await).await;
        measure(work).await.assert_queries(0);
        other.shutdown_background();
    })
    .await;
}

#[tokio::test]
async fn an_actor_on_the_same_runtime() {
    warns("elsewhere::an_actor_on_the_same_runtime", &ACTOR, async {
        let work = ask_actor(None, metered().await).await;
        measure(work).await.assert_queries(0);
    })
    .await;
}

const UNCARRIED: [&str; 2] = ["1 task that it did not carry along", "plain pools"];

#[tokio::test]
async fn a_plain_pool_in_a_spawned_task() {
    warns("elsewhere::a_plain_pool_in_a_spawned_task", &UNCARRIED, async {
        let (plain, _pool) = (plain().await, metered().await);
        let record =
            measure(async { tokio::spawn(async move { query(&plain).await }).await.unwrap() });
        record.await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
async fn a_plain_pool_in_a_closure_for_blocking_work() {
    warns("elsewhere::a_plain_pool_in_a_closure_for_blocking_work", &UNCARRIED, async {
        let (plain, pool) = (plain().await, metered().await);
        let here = tokio::runtime::Handle::current();
        let record = measure(async {
            query(&pool).await;
            let there = move || here.block_on(query(&plain));
            tokio::task::spawn_blocking(there).await.unwrap();
        });
        record.await.assert_queries(1);
    })
    .await;
}

#[tokio::test]
#[expect(clippy::async_yields_async, reason = "that is the wiring: nobody waits for the task")]
async fn a_plain_pool_in_a_task_that_nobody_waits_for() {
    warns("elsewhere::a_plain_pool_in_a_task_that_nobody_waits_for", &UNCARRIED, async {
        let (plain, _pool) = (plain().await, metered().await);
        let work = async { tokio::spawn(async move { query(&plain).await }) };
        let record = measure(work).await;
        record.assert_queries(0);
        record.into_output().await.unwrap();
    })
    .await;
}
