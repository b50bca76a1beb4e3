//! What is not ours to change passes through unchanged.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use request_budget::http::BodyError;
use request_budget::{Budget, BudgetLayer, Limit};
use tower::{Layer, Service, ServiceExt};

use crate::support::{Failure, Given, Ledger, Script, Step, body, budgeted, data, next};
use Step::{Data, Trailers, Wait};

#[test]
fn the_size_and_the_end_of_a_body_are_those_of_the_wrapped_one() {
    let ledger = Ledger::default();
    let exact = body(Budget::new(), &ledger, Script::new([Data("abc")]).of_length(3));
    assert_eq!(exact.size_hint().exact(), Some(3));
    assert!(!exact.is_end_stream());

    let unknown = body(Budget::new(), &ledger, Script::new([Data("abc")]));
    assert_eq!((unknown.size_hint().lower(), unknown.size_hint().upper()), (0, None));

    let empty = body(Budget::new(), &ledger, Script::new([]).telling_its_end());
    assert!(empty.is_end_stream());
}

#[test]
fn a_body_tells_its_end_once_it_was_reached() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Data("abc")]));
    assert_eq!(next(&mut body), data("abc"));
    assert!(!body.is_end_stream(), "nobody knows yet");
    assert_eq!(next(&mut body), Given::End);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
}

#[test]
fn frames_and_their_order_are_those_of_the_wrapped_body() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a"), Wait, Data(""), Data("b"), Trailers]);
    let mut body = body(Budget::new(), &ledger, script);
    let given = [(); 6].map(|()| next(&mut body));
    assert_eq!(
        given,
        [data("a"), Given::Nothing, data(""), data("b"), Given::Trailers, Given::End]
    );
}

#[test]
fn the_head_of_the_answer_is_not_touched() {
    #[derive(Clone, Debug, PartialEq)]
    struct Extension(u8);

    let service = tower::service_fn(|_: Request<()>| {
        let mut response = Response::new(Script::new([]));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        *response.version_mut() = Version::HTTP_2;
        response.headers_mut().insert("x-a", HeaderValue::from_static("1"));
        response.extensions_mut().insert(Extension(7));
        ready(Ok::<_, Infallible>(response))
    });
    let service = budgeted(Budget::new(), &Ledger::default(), service);
    let (head, _body) =
        service.oneshot(Request::new(())).now_or_never().unwrap().unwrap().into_parts();
    assert_eq!((head.status, head.version), (StatusCode::IM_A_TEAPOT, Version::HTTP_2));
    assert_eq!((head.headers.len(), &head.headers["x-a"]), (1, &HeaderValue::from_static("1")));
    assert_eq!(head.extensions.get(), Some(&Extension(7)));
}

#[test]
fn the_request_is_not_touched() {
    let service = tower::service_fn(|request: Request<&str>| {
        assert_eq!((request.uri().path(), *request.body()), ("/posts/12345", "the body"));
        ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
    });
    let request = Request::get("/posts/12345").body("the body").unwrap();
    let answer = BudgetLayer::new(Budget::new()).layer(service).oneshot(request).now_or_never();
    assert!(answer.unwrap().is_ok());
}

/// Counts how often it is asked whether it is ready; it never is on the first time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Slow {
    asked: u32,
}

impl Service<Request<()>> for Slow {
    type Response = Response<Script>;
    type Error = &'static str;
    type Future = Ready<Result<Response<Script>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.asked += 1;
        match self.asked {
            1 => Poll::Pending,
            2 => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err("closed")),
        }
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert_eq!(self.asked, 2, "the service that was ready is the one called");
        ready(Ok(Response::new(Script::new([]))))
    }
}

#[test]
fn readiness_is_that_of_the_wrapped_service() {
    let mut service = BudgetLayer::new(Budget::new()).layer(Slow::default());
    let mut cx = Context::from_waker(Waker::noop());
    let mut ready = || Service::<Request<()>>::poll_ready(&mut service, &mut cx);
    assert_eq!([ready(), ready()], [Poll::Pending, Poll::Ready(Ok(()))]);
    drop(service.call(Request::new(())));
    let closed = Service::<Request<()>>::poll_ready(&mut service, &mut cx);
    assert_eq!(closed, Poll::Ready(Err("closed")));
}

#[test]
fn the_wrapped_service_can_be_reached() {
    let mut service = BudgetLayer::new(Budget::new()).layer(Slow::default());
    service.get_mut().asked = 5;
    assert_eq!(service.get_ref(), &Slow { asked: 5 });
    assert_eq!(service.clone().into_inner(), Slow { asked: 5 });
}

#[test]
fn an_error_of_a_body_prints_as_it_does_itself() {
    let error = BodyError::Inner(Failure.into());
    assert_eq!(error.to_string(), Failure.to_string());
}

#[test]
fn a_limit_that_is_not_crossed_changes_nothing() {
    let ledger = Ledger::default();
    let budget = Budget::new().response_bytes(Limit::soft(3).and_hard(3)).external_calls(0);
    let mut body = body(budget, &ledger, Script::new([Data("a"), Data("bc"), Trailers]));
    assert_eq!(
        [next(&mut body), next(&mut body), next(&mut body)],
        [data("a"), data("bc"), Given::Trailers]
    );
    assert_eq!((ledger.messages(), ledger.end().violations), (vec![], 0));
}
