//! `ExternalHttpClient` under the S3 client of the AWS SDK, whose calls go to a server on this
//! machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use request_budget::http::ExternalHttpClient;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage};
use tokio::net::TcpListener;

use crate::suite::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.without_server(&[
        ("aws_calls_are_counted_by_service_and_answers_are_as_they_were", || run(counted)),
        ("aws_attempts_are_calls", || run(attempts)),
        ("aws_call_that_takes_too_long_is_cut_before_its_answer_and_in_its_body", || run(cut)),
        ("aws_call_that_is_cut_in_its_body_is_tried_again_unless_it_is_classified", || run(again)),
        ("aws_call_that_is_refused_is_not_made_and_yields_first", || run(refused)),
        ("aws_errors_are_those_of_the_service_and_a_dropped_body_ends_the_call", || run(errors)),
        ("aws_calls_of_fifty_requests_are_told_apart", fifty),
    ]);
}

const MS: Duration = Duration::from_millis(1);

fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    with_runtime(0, test());
}

/// A server that answers as S3 does: `/shop/ready` at once, `/shop/never` never; the body of
/// `/shop/endless` and the list of `/endless` begin and never end; `/shop/third` succeeds when it
/// is asked the third time.
async fn s3() -> SocketAddr {
    let endless = || async {
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"<first")) });
        Response::new(Body::from_stream(first.chain(stream::pending())))
    };
    let asked = Arc::new(AtomicU64::new(0));
    let third = move || async move {
        match asked.fetch_add(1, Relaxed) {
            2 => "third".into_response(),
            _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    let put = |body: Bytes| async move { [(header::ETAG, format!("\"{}\"", body.len()))] };
    let app = Router::new()
        .route("/shop/ready", get(|| async { "hello" }).put(put))
        .route("/shop/never", get(std::future::pending::<&str>))
        .route("/shop/endless", get(endless))
        .route("/shop/third", get(third))
        .route("/endless/", get(endless))
        .fallback(|| async { (StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>") });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn config(address: SocketAddr, calls: ExternalHttpClient) -> Builder {
    Builder::new()
        .behavior_version_latest()
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new("id", "secret", None, None, "test"))
        .endpoint_url(format!("http://{address}"))
        .force_path_style(true)
        .http_client(calls)
}

fn calls() -> ExternalHttpClient {
    ExternalHttpClient::by_service(aws_smithy_http_client::Builder::new().build_http())
}

fn client(address: SocketAddr) -> Client {
    Client::from_conf(config(address, calls()).build())
}

async fn counted() {
    let s3 = client(s3().await);
    let record = measure(async {
        for _ in 0..2 {
            let object = s3.get_object().bucket("shop").key("ready").send().await.expect("gets");
            assert_eq!(object.content_length(), Some(5));
            let body = object.body.collect().await.expect("reads").into_bytes();
            assert_eq!(body, Bytes::from_static(b"hello"));
        }
        let put = s3.put_object().bucket("shop").key("ready").body(ByteStream::from_static(b"12"));
        assert!(put.send().await.expect("puts").e_tag().is_some());
    })
    .await;
    assert_eq!(record.usage().external_calls, 3);
    let [calls] = record.external_calls() else { panic!("one system") };
    assert_eq!((&*calls.name, calls.calls), ("s3", 3));
    assert!(calls.time > Duration::ZERO);

    let named = aws_smithy_http_client::Builder::new().build_http();
    let named = ExternalHttpClient::new("pictures", named);
    let s3 = Client::from_conf(config(self::s3().await, named).build());
    let get = async { s3.get_object().bucket("shop").key("ready").send().await.map(drop) };
    let record = measure(get).await;
    assert_eq!(&*record.external_calls()[0].name, "pictures");
}

async fn attempts() {
    let s3 = client(s3().await);
    let work = async {
        tokio::time::pause();
        let object = s3.get_object().bucket("shop").key("third").send().await.expect("gets");
        object.body.collect().await.expect("reads");
        Usage::current().expect("inside").external_calls
    };
    assert_eq!(work.budgeted("order", Budget::new()).await, Ok(3));
}

async fn cut() {
    let s3 = client(s3().await);
    let work = async {
        let object = s3.get_object().bucket("shop").key("endless").send().await.expect("gets");
        // From here on the clock jumps to the next deadline when nothing else is to be done.
        tokio::time::pause();
        let endless = object.body.collect().await.expect_err("is cut");
        let never = s3.get_object().bucket("shop").key("never").send().await.expect_err("is cut");
        assert!(never.as_service_error().is_none());
        let usage = Usage::current().expect("inside");
        (Cut::find(&never).cloned(), Cut::find(&endless).cloned(), usage)
    };
    let budget = Budget::new().external_timeout(500 * MS);
    let (never, endless, usage) = work.budgeted("order", budget).await.expect("goes on");
    for cut in [never, endless] {
        let cut = cut.expect("found");
        assert_eq!(cut.violation().resource, Resource::ExternalTimeout);
        assert!(cut.to_string().contains("call to \"s3\""), "{cut}");
    }
    assert_eq!(usage.external_calls, 2);
    assert!(usage.external_time >= 1_000 * MS, "{usage:?}");
}

async fn again() {
    let address = s3().await;
    let classified = config(address, calls()).retry_classifier(calls()).build();
    for (config, attempts) in [(classified, 1), (config(address, calls()).build(), 3)] {
        let s3 = Client::from_conf(config);
        let work = async {
            let error = s3.list_objects_v2().bucket("endless").send().await.expect_err("is cut");
            assert!(Cut::find(&error).is_some(), "{error:?}");
            Usage::current().expect("inside").external_calls
        };
        let budget = Budget::new().external_timeout(500 * MS);
        assert_eq!(work.budgeted("list", budget).await, Ok(attempts));
    }
}

async fn refused() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let s3 = client(closed.local_addr().expect("bound"));
    let work = async {
        loop {
            drop(s3.get_object().bucket("shop").key("ready").send().await);
        }
    };
    let budget = Budget::new().external_calls(Limit::hard(0));
    let never: Result<(), Cut> = work.budgeted("order", budget).await;
    let cut = never.expect_err("is cut");
    assert_eq!(cut.violation().resource, Resource::ExternalCalls);
    assert_eq!(cut.violation().observed.to_string(), "1");
    // Nobody has knocked.
    assert!(closed.accept().now_or_never().is_none());
}

async fn errors() {
    let s3 = client(s3().await);
    let work = async {
        let none =
            s3.get_object().bucket("shop").key("none").send().await.expect_err("is not there");
        assert!(none.as_service_error().is_some_and(|error| error.is_no_such_key()), "{none:?}");
        assert!(Cut::find(&none).is_none());
        let object = s3.get_object().bucket("shop").key("endless").send().await.expect("gets");
        let before = Usage::current().expect("inside").external_time;
        drop(object);
        let usage = Usage::current().expect("inside");
        assert!(usage.external_time > before, "{usage:?}");
        usage.external_calls
    };
    assert_eq!(work.budgeted("order", Budget::new()).await, Ok(2));
    // And outside of any work nothing is cut.
    let object = s3.get_object().bucket("shop").key("ready").send().await.expect("gets");
    object.body.collect().await.expect("reads");
}

fn fifty() {
    with_runtime(2, async {
        let s3 = client(s3().await);
        let request = |n: u64| {
            let s3 = s3.clone();
            let work = async move {
                for _ in 0..n % 5 {
                    let get = s3.get_object().bucket("shop").key("ready").send();
                    get.await.expect("gets").body.collect().await.expect("reads");
                }
                Usage::current().expect("inside").external_calls
            };
            tokio::spawn(work.budgeted("request", Budget::new()))
        };
        for (n, calls) in join_all((0..50).map(request)).await.into_iter().enumerate() {
            assert_eq!(calls.expect("no panic"), Ok(n as u64 % 5));
        }
    });
}
