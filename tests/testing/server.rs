//! A client over a socket: what the server does is in the record of the test.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::get;
use axum::{Router, serve};
use futures_util::stream;
use request_budget::db::Query;
use request_budget::sqlx::Pool;
use request_budget::testing::{Record, Recorder, measure};
use request_budget::{Budget, BudgetLayer};
use sqlx::{Sqlite, SqlitePool};
use tokio::net::TcpListener;

use crate::failure;

async fn one(State(pool): State<Pool<Sqlite>>) -> String {
    sqlx::query_scalar("SELECT 'one'").fetch_one(&pool).await.unwrap()
}

/// Asks the database while the body is sent.
async fn streamed(State(pool): State<Pool<Sqlite>>) -> Body {
    Body::from_stream(stream::unfold(0, move |n| {
        let pool = pool.clone();
        async move {
            if n == 3 {
                return None;
            }
            let part: String = sqlx::query_scalar("SELECT 'part'").fetch_one(&pool).await.unwrap();
            Some((Ok::<_, std::io::Error>(Bytes::from(part)), n + 1))
        }
    }))
}

/// The address of a server that runs as long as the test.
async fn start(recorder: &Recorder) -> String {
    let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await.unwrap());
    let app = Router::new()
        .route("/one", get(one))
        .route("/streamed", get(streamed))
        .with_state(pool)
        .layer(BudgetLayer::new(Budget::new().queries(100)))
        .layer(recorder.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { serve(listener, app).await });
    url
}

async fn ask(url: &str, path: &str) -> String {
    reqwest::get(format!("{url}/{path}")).await.unwrap().text().await.unwrap()
}

async fn requests_are_measured() {
    let recorder = Recorder::new();
    let url = start(&recorder).await;
    assert_eq!(ask(&url, "one").await, "one", "requests outside of measurements pass");
    let record = recorder.measure(ask(&url, "one")).await;
    record.assert_queries(1);
    let [statement] = record.statements() else { panic!("one statement") };
    assert_eq!((&*statement.text, statement.rows), ("SELECT ?", 1));
    let sites = statement.sites();
    assert_eq!(sites[0].places[0].file, "tests/testing/server.rs");
    assert_eq!(sites[0].places.len(), 1, "the runtime is no caller: {sites:?}");
    assert_eq!(record.into_output(), "one");

    let record = recorder.measure(async { (ask(&url, "streamed").await, ask(&url, "one").await) });
    let record = record.await;
    record.assert_queries(4);
    assert_eq!(*record.output(), ("partpartpart".to_owned(), "one".to_owned()));
    assert!(record.usage().memory.unwrap() > 0);

    assert_eq!(ask(&url, "one").await, "one");
    let idle = recorder.measure(async {}).await;
    assert_eq!(idle.usage().queries, 0, "what came before is over");
    let said = failure(|| idle.assert_queries(0));
    assert!(
        said.contains(", but no request passed through the layer of the `Recorder`\n"),
        "{said}"
    );
}

#[tokio::test]
async fn requests_are_measured_on_one_thread() {
    requests_are_measured().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn requests_are_measured_on_several_threads() {
    requests_are_measured().await;
}

#[tokio::test]
async fn a_server_without_the_layer_is_not_taken_for_one_without_queries() {
    let recorder = Recorder::new();
    // The layer is that of another one.
    let url = start(&Recorder::new()).await;
    let said = |record: &Record<String>| {
        let said = failure(|| record.assert_queries(0));
        said.lines().next().unwrap().to_owned()
    };
    let record = recorder.measure(ask(&url, "streamed")).await;
    let none = "the test counts queries, but no request passed through the layer of the `Recorder`";
    assert_eq!(said(&record), format!("{none}, while 3 statements ran in other tasks"));
    // Nor does it help that the client asks the database as well.
    let both = async {
        drop(Query::start("SELECT 1"));
        ask(&url, "one").await
    };
    let record = recorder.measure(both).await;
    assert!(said(&record).ends_with(", while 1 statement ran in other tasks"));
    let record = recorder.measure(async { String::new() }).await;
    assert_eq!(said(&record), none);

    let record = measure(ask(&url, "one")).await;
    let none = "the test counts queries, but the work itself executed none";
    assert_eq!(said(&record), format!("{none}, while 1 statement ran in other tasks"));
    let [statement] = record.elsewhere() else { panic!("one statement") };
    assert_eq!((&*statement.text, statement.executions, statement.rows), ("SELECT ?", 1, 1));
    assert_eq!(statement.sites()[0].places[0].file, "tests/testing/server.rs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_test_sees_its_own_server() {
    let mut tests = Vec::new();
    for times in 1..6 {
        tests.push(tokio::spawn(async move {
            let recorder = Recorder::new();
            let url = start(&recorder).await;
            let asks = async {
                for _ in 0..times {
                    ask(&url, "one").await;
                }
            };
            recorder.measure(asks).await.assert_queries(times);
        }));
    }
    for test in tests {
        test.await.unwrap();
    }
}

#[tokio::test]
async fn one_measurement_at_a_time() {
    let recorder = Recorder::new();
    let both = recorder.measure(async {
        let second = tokio::spawn({
            let recorder = recorder.clone();
            async move { recorder.measure(async {}).await.into_output() }
        });
        second.await.unwrap_err().into_panic().downcast::<&str>().map(|said| *said).unwrap()
    });
    let said = both.await.into_output();
    assert_eq!(said, "a recorder runs one measurement at a time: make one for each test");
    // The first one goes on undisturbed, and a later one can begin.
    recorder.measure(async {}).await.into_output();
}

#[tokio::test]
async fn a_fault_of_the_server_names_its_line() {
    let recorder = Recorder::new();
    let url = start(&recorder).await;
    let record = recorder.measure(ask(&url, "streamed")).await;
    let said = failure(|| record.assert_within(Budget::new().queries(1)));
    assert!(said.starts_with("3 queries, limit 1: 2 too many\n"), "{said}");
    assert!(said.contains("\n       at tests/testing/server.rs:"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_end_is_said() {
    let recorder = Recorder::new();
    let service = tower::ServiceBuilder::new().layer(recorder.layer()).service(tower::service_fn(
        |_: http::Request<Body>| async {
            Ok::<_, std::io::Error>(http::Response::new(Body::empty()))
        },
    ));
    let answer = recorder.measure(async {
        drop(Query::start("SELECT 1"));
        tower::ServiceExt::oneshot(service, http::Request::new(Body::empty())).await.unwrap()
    });
    // The body is held, so the request has not ended.
    let record = tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap();
    let said = failure(|| record.assert_queries(0));
    assert!(said.contains("\n1 request had not ended by then\n"), "{said}");
}
