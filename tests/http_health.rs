//! What anybody outside can provoke is said once in a while, and short.
//!
//! One test: it listens to all of the process.

mod health;

use std::convert::Infallible;
use std::future::ready;

use futures_util::FutureExt;
use http::{HeaderValue, Request, Response};
use request_budget::http::QueueTime;
use request_budget::{Budget, BudgetLayer};
use tower::{Layer, ServiceExt};
use tracing::Level;

fn send(layer: &BudgetLayer<Budget>, name: &str, value: &HeaderValue) {
    let service = layer.layer(tower::service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    let request = Request::builder().header(name, value).body(()).expect("is a request");
    drop(service.oneshot(request).now_or_never().expect("answers at once"));
}

#[test]
fn garbage_in_headers_is_no_flood() {
    let health = health::listen();
    let layer = BudgetLayer::new(Budget::new())
        .with_incoming_deadlines()
        .with_queue_time(QueueTime::Measured);
    let garbage = HeaderValue::from_bytes(&[&[0xff, b'"'][..], &[b'x'; 5_000]].concat());
    let garbage = garbage.expect("may be in a header");
    for name in ["x-request-start", "x-queue-start", "x-request-timeout-ms", "grpc-timeout"] {
        for _ in 0..100 {
            send(&layer, name, &garbage);
        }
    }
    let [(level, _, message)] = &health.heard()[..] else { panic!("{:?}", health.heard()) };
    assert_eq!(*level, Level::DEBUG);
    let value = format!(r#""\xff\"{}""#, "x".repeat(98));
    assert_eq!(
        *message,
        format!("the header x-request-start is ignored: {value} makes no sense there")
    );
}
