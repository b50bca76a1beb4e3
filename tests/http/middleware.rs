//! `ExternalMiddleware` in front of real listeners: ready, slow, endless and closed.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use axum::{Router, routing::get};
use futures_util::{StreamExt, stream};
use request_budget::http::ExternalMiddleware;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tokio::net::TcpListener;

const MS: Duration = Duration::from_millis(1);

/// A server whose answers come at once, never, or begin and never end.
async fn server() -> SocketAddr {
    let endless = || async {
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
        Response::new(Body::from_stream(first.chain(stream::pending())))
    };
    let app = Router::new()
        .route("/ready", get(|| async { "hello" }))
        .route("/never", get(std::future::pending::<&str>))
        .route("/endless", get(endless));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn client(middleware: ExternalMiddleware) -> ClientWithMiddleware {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    ClientBuilder::new(client).with(middleware).build()
}

#[tokio::test]
async fn a_call_is_counted_and_its_response_is_as_it_was() {
    let address = server().await;
    let client = client(ExternalMiddleware::new("payments"));
    let url = format!("http://{address}/ready");
    let record = measure(async {
        for _ in 0..3 {
            let response = client.get(&url).send().await.unwrap();
            assert_eq!((response.status().as_u16(), response.url().as_str()), (200, &*url));
            assert_eq!(response.content_length(), Some(5));
            assert_eq!(response.headers()["content-length"], "5");
            assert!(response.remote_addr().is_some());
            assert_eq!(response.text().await.unwrap(), "hello");
        }
    })
    .await;
    assert_eq!(record.usage().external_calls, 3);
    let [calls] = record.external_calls() else { panic!("one system") };
    assert_eq!((&*calls.name, calls.calls), ("payments", 3));
    assert!(calls.time > Duration::ZERO);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_cut_before_its_answer_and_in_its_body() {
    let address = server().await;
    let client = client(ExternalMiddleware::by_host());
    let work = async {
        let response = client.get(format!("http://{address}/endless")).send().await.unwrap();
        // From here on the clock jumps to the next deadline when nothing else is to be done.
        tokio::time::pause();
        let endless = response.bytes().await.unwrap_err();
        let never = client.get(format!("http://{address}/never")).send().await.unwrap_err();
        (Cut::find(&never).cloned(), Cut::find(&endless).cloned(), Usage::current().unwrap())
    };
    let budget = Budget::new().external_timeout(60_000 * MS);
    let (never, endless, usage) = work.budgeted("order", budget).await.unwrap();
    for cut in [never.unwrap(), endless.unwrap()] {
        assert_eq!(cut.violation().resource, Resource::ExternalTimeout);
        assert!(cut.to_string().contains("call to \"127.0.0.1\""), "{cut}");
    }
    assert_eq!(usage.external_calls, 2);
    assert!(usage.external_time >= 120_000 * MS, "{usage:?}");
}

#[tokio::test]
async fn errors_of_the_client_are_its_own_and_a_dropped_body_ends_the_call() {
    let address = server().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = client(ExternalMiddleware::new("payments"));
    let work = async {
        let error = client.get(format!("http://{closed}/")).send().await.unwrap_err();
        assert!(error.is_connect() && Cut::find(&error).is_none(), "{error}");
        let response = client.get(format!("http://{address}/endless")).send().await.unwrap();
        let before = Usage::current().unwrap().external_time;
        drop(response);
        let usage = Usage::current().unwrap();
        assert!(usage.external_time > before, "{usage:?}");
        usage.external_calls
    };
    assert_eq!(work.budgeted("order", Budget::new()).await, Ok(2));
    // And outside of any work nothing is cut.
    let response = client.get(format!("http://{address}/ready")).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "hello");
}

#[tokio::test]
async fn a_call_that_is_refused_is_not_made_and_yields_first() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", closed.local_addr().unwrap());
    let client = client(ExternalMiddleware::new("payments"));
    let work = async {
        loop {
            drop(client.get(&url).send().await);
        }
    };
    let budget = Budget::new().external_calls(Limit::hard(0));
    let never: Result<(), Cut> = work.budgeted("order", budget).await;
    assert_eq!(never.unwrap_err().violation().resource, Resource::ExternalCalls);
    // Nobody has knocked.
    let knock = std::pin::pin!(closed.accept());
    assert!(futures_util::poll!(knock).is_pending());
}
