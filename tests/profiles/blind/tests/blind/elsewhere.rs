//! Work whose statements run in tasks, threads and runtimes that it has not carried along.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use request_budget::report::fields::HEALTH;
use request_budget::sqlx::Pool;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetLayer, Limit};
use sqlx::Sqlite;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{assert_place, assert_says, assert_warns, failure, metered, plain_logging, query};

const HANDLER: u32 = line!() + 4;

async fn three(State(pool): State<Pool<Sqlite>>) -> &'static str {
    for _ in 0..3 {
        query(&pool).await;
    }
    "done"
}

async fn spawned(request: Request, next: Next) -> Response {
    tokio::spawn(next.run(request)).await.expect("no panic")
}

async fn ask(app: Router, path: &str) {
    let request = Request::get(path).body(Body::empty()).expect("a good request");
    let answer = app.oneshot(request).await.expect("routers do not fail");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_handler_that_is_spawned_out_of_its_scope() {
    let pool = metered().await;
    let routes = || Router::new().route("/", get(three)).with_state(pool.clone());
    let layer = || BudgetLayer::new(Budget::new().queries(9));
    for app in [
        routes().layer(from_fn(spawned)),
        routes().layer(from_fn(spawned)).layer(layer()),
        routes().layer(layer()).layer(from_fn(spawned)),
    ] {
        let record = measure(ask(app, "/")).await;
        for said in [
            failure(|| record.assert_queries(0)),
            failure(|| record.assert_within(Budget::new().queries(9))),
            failure(|| record.assert_no_repeated_statements()),
        ] {
            assert_says(
                &said,
                "the work itself executed none, while 3 statements ran in other tasks\n",
            );
            assert_says(&said, "`.in_current_budget()`");
            assert_place(&said, "elsewhere.rs", HANDLER);
        }
    }
    // The same, where nothing is between.
    let record = measure(ask(routes().layer(layer()), "/")).await;
    record.assert_queries(3);
}

#[derive(Clone, Default)]
struct Health(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Health {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == HEALTH {
            self.0.lock().expect("no panic").push(format!("{event:?}"));
        }
    }
}

#[tokio::test]
async fn a_limit_that_never_sees_the_handler_is_reported_in_production() {
    let health = Health::default();
    // For all threads: `tracing` keeps for all what the first thread at an event is interested in.
    let subscriber = tracing_subscriber::registry().with(health.clone());
    tracing::subscriber::set_global_default(subscriber).expect("there is one a process");
    let layer = BudgetLayer::new(Budget::new().queries(Limit::hard(2)));
    let routes = Router::new().route("/limited", get(three)).with_state(metered().await);
    ask(routes.layer(from_fn(spawned)).layer(layer), "/limited").await;
    let mut said = health.0.lock().expect("no panic").clone();
    // Other tests run beside this one.
    said.retain(|event| event.contains("GET /limited"));
    let [said] = &*said else { panic!("once: {said:?}") };
    assert_says(said, "a budget limits queries, but the work executed no statement itself");
    assert_says(said, "`request_budget::task::spawn`");
}

#[tokio::test]
async fn a_data_loader_that_repeats_a_statement_in_a_task() {
    let pool = metered().await;
    const LINE: u32 = line!() + 6;
    let record = measure(async {
        query(&pool).await;
        let pool = pool.clone();
        let load = async move {
            for key in 0..10 {
                sqlx::query("SELECT $1").bind(key).execute(&pool).await.expect("a good statement");
            }
        };
        tokio::spawn(load).await.expect("no panic");
    });
    let record = record.await;
    for said in [
        failure(|| record.assert_queries(1)),
        failure(|| record.assert_within(Budget::new().queries(20))),
        failure(|| record.assert_no_repeated_statements()),
    ] {
        assert_says(&said, "may not have executed all, while 10 statements ran in other tasks\n");
        assert_says(&said, "\n    10x SELECT ?  <- repeated\n");
        assert_place(&said, "elsewhere.rs", LINE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_not_carried_along_beside_a_statement_of_ones_own() {
    let pool = metered().await;
    let record = measure(async {
        query(&pool).await;
        let pool = pool.clone();
        tokio::spawn(async move { query(&pool).await }).await.expect("no panic");
    });
    let record = record.await;
    let said = failure(|| record.assert_queries(1));
    assert_says(&said, "may not have executed all, while 1 statement ran in other tasks\n");
}

#[tokio::test]
async fn a_plain_pool_in_a_task_that_is_not_carried_along() {
    let test = "elsewhere::a_plain_pool_in_a_task_that_is_not_carried_along";
    assert_warns(test, "1 task that it did not carry along: what plain pools", async {
        let (plain, _pool) = (plain_logging("debug").await, metered().await);
        let record = measure(async {
            tokio::spawn(async move { query(&plain).await }).await.expect("no panic");
        });
        record.await.assert_queries(0);
    })
    .await;
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[tokio::test]
async fn a_metered_pool_on_the_runtime_of_a_thread() {
    let test = "elsewhere::a_metered_pool_on_the_runtime_of_a_thread";
    assert_warns(test, "1 statement ran meanwhile outside of the runtime", async {
        let pool = metered().await;
        let record = measure(async {
            query(&pool).await;
            let (answer, answered) = oneshot::channel();
            thread::spawn(move || {
                runtime().block_on(query(&pool));
                answer.send(()).expect("it is waited for");
            });
            answered.await.expect("it answers");
        });
        record.await.assert_queries(1);
    })
    .await;
}

#[tokio::test]
async fn an_actor_that_was_there_before() {
    let test = "elsewhere::an_actor_that_was_there_before";
    assert_warns(test, "1 statement of what was there before the work answered it", async {
        let pool = metered().await;
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
        tokio::spawn(async move {
            while let Some(answer) = asked.recv().await {
                query(&pool).await;
                answer.send(()).expect("it is waited for");
            }
        });
        let record = measure(async {
            let (answer, answered) = oneshot::channel();
            ask.send(answer).await.expect("it lives");
            answered.await.expect("it answers");
        });
        record.await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_nothing_measures() {
    let test = "elsewhere::a_socket_that_nothing_measures";
    assert_warns(test, "the work waited for a socket, which nothing measures", async {
        let pool = metered().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, server) = (client.expect("connects"), server.expect("accepts").0);
        // Answers once it is asked, on a thread of its own.
        let mut server = server.into_std().expect("it is taken out of the runtime");
        server.set_nonblocking(false).expect("it can wait");
        let server = thread::spawn(move || {
            server.read_exact(&mut [0]).expect("it is asked");
            server.write_all(&[7]).expect("it answers");
        });
        let record = measure(async {
            query(&pool).await;
            client.write_u8(1).await.expect("asks");
            client.read_u8().await.expect("there is an answer")
        });
        record.await.assert_queries(1);
        server.join().expect("no panic");
    })
    .await;
}
