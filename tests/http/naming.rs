//! Names and budgets by request.

use std::convert::Infallible;
use std::future::ready;

use futures_util::FutureExt;
use http::{Method, Request, Response};
use request_budget::{Budget, BudgetLayer};
use tower::{Layer, ServiceExt};

use crate::support::{Ledger, Script, Step, answer, call};

#[test]
fn without_a_route_a_request_is_named_by_its_method_alone() {
    for (method, name) in [
        (Method::GET, "GET (no route)"),
        (Method::POST, "POST (no route)"),
        (Method::PUT, "PUT (no route)"),
        (Method::PATCH, "PATCH (no route)"),
        (Method::DELETE, "DELETE (no route)"),
        (Method::HEAD, "HEAD (no route)"),
        (Method::OPTIONS, "OPTIONS (no route)"),
        (Method::CONNECT, "CONNECT (no route)"),
        (Method::TRACE, "TRACE (no route)"),
        (Method::from_bytes(b"BREW").unwrap(), "_OTHER (no route)"),
    ] {
        let ledger = Ledger::default();
        drop(answer(Budget::new(), &ledger, method, http::StatusCode::OK, Script::new([])));
        assert_eq!(ledger.end().work, name);
    }
}

#[test]
fn the_user_names_requests() {
    let ledger = Ledger::default();
    let service = tower::service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(Script::new([Step::Data("a")]))))
    });
    let layer = BudgetLayer::new(Budget::new())
        .with_names(|request: &Request<()>| format!("rpc over {:?}", request.version()))
        .with_reporter(ledger.clone());
    drop(layer.layer(service).oneshot(Request::new(())).now_or_never());
    assert_eq!(ledger.end().work, "rpc over HTTP/1.1");
}

#[tokio::test(start_paused = true)]
async fn a_policy_gives_each_request_its_budget() {
    let ledger = Ledger::default();
    let service = tower::service_fn(|_: Request<()>| {
        call();
        ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
    });
    let policy = |request: &Request<()>| match *request.method() {
        Method::POST => Budget::new().external_calls(0),
        _ => Budget::new(),
    };
    let service = BudgetLayer::new(policy).with_reporter(ledger.clone()).layer(service);
    for method in [Method::GET, Method::POST] {
        let request = Request::builder().method(method).body(()).unwrap();
        drop(service.clone().oneshot(request).now_or_never());
    }
    assert_eq!(
        ledger.messages(),
        ["POST (no route): 1 external call, limit 0: call to \"payments\""]
    );
}
