//! A request ends with its body, however that ends, and is reported exactly once.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::poll_fn;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Empty, Full, StreamBody};
use proptest::prelude::*;
use request_budget::report::Outcome;
use request_budget::{Budget, Limit};
use tower::{Service, ServiceExt};

use crate::support::{
    CallOnDrop, DropSite, Dropped, Given, Ledger, Script, Step, answer, body, budgeted, data,
    handled, next, poll_once,
};
use Step::{Data, Fail, Trailers, Wait};

#[test]
fn the_end_of_the_stream_ends_the_request() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Data("a"), Wait, Data("b")]));
    for given in [data("a"), Given::Nothing, data("b")] {
        assert_eq!(next(&mut body), given);
        assert_eq!(ledger.outcomes(), []);
    }
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);

    assert_eq!(next(&mut body), Given::End, "asked once more");
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn a_body_that_tells_its_end_is_not_asked_again() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a"), Data("b")]).telling_its_end();
    let mut body = body(Budget::new(), &ledger, script);
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(ledger.outcomes(), []);
    assert_eq!(next(&mut body), data("b"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn trailers_end_the_request() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Data("a"), Trailers]));
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(ledger.outcomes(), []);
    assert_eq!(next(&mut body), Given::Trailers);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(next(&mut body), Given::End);
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn an_error_of_the_body_ends_the_request() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Data("a"), Fail, Data("b")]));
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(next(&mut body), Given::Failed("the file is gone".to_owned()));
    assert_eq!(ledger.outcomes(), [Outcome::Error]);
    assert_eq!(next(&mut body), Given::End, "nothing comes after an error");
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Error]);
}

#[test]
fn a_future_dropped_before_the_answer_is_cancelled() {
    let ledger = Ledger::default();
    let mut future = handled(Budget::new(), &ledger, pending());
    assert!(poll_once(future.as_mut()).is_pending());
    assert_eq!(ledger.outcomes(), []);
    drop(future);
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn a_future_that_is_never_polled_is_cancelled() {
    let ledger = Ledger::default();
    drop(handled(Budget::new(), &ledger, pending()));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn a_body_dropped_midway_is_cancelled() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Data("a"), Data("b")]));
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(ledger.outcomes(), []);
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn a_body_of_unknown_length_dropped_unpolled_is_cancelled() {
    let ledger = Ledger::default();
    drop(body(Budget::new(), &ledger, Script::new([])));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn an_empty_body_dropped_unpolled_is_complete() {
    for empty in [Script::new([]).telling_its_end(), Script::new([]).of_length(0)] {
        let ledger = Ledger::default();
        drop(body(Budget::new(), &ledger, empty));
        assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    }
}

#[test]
fn a_body_of_which_all_was_taken_is_complete_without_a_last_poll() {
    let ledger = Ledger::default();
    let script = || Script::new([Data("one"), Data("two")]).of_length(6);
    let mut whole = body(Budget::new(), &ledger, script());
    assert_eq!([next(&mut whole), next(&mut whole)], [data("one"), data("two")]);
    drop(whole);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);

    let ledger = Ledger::default();
    let mut half = body(Budget::new(), &ledger, script());
    assert_eq!(next(&mut half), data("one"));
    drop(half);
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn an_answer_that_has_no_body_is_complete_unpolled() {
    // A body is there, but a server must not send it.
    for (method, status) in [
        (Method::HEAD, StatusCode::OK),
        (Method::GET, StatusCode::NO_CONTENT),
        (Method::GET, StatusCode::NOT_MODIFIED),
    ] {
        let ledger = Ledger::default();
        let script = Script::new([Data("a")]).of_length(1);
        drop(answer(Budget::new(), &ledger, method.clone(), status, script));
        assert_eq!(ledger.outcomes(), [Outcome::Ok], "{method} {status}");
    }
}

#[test]
fn an_upgrade_ends_the_request() {
    let ledger = Ledger::default();
    let script = Script::new([]);
    drop(answer(Budget::new(), &ledger, Method::GET, StatusCode::SWITCHING_PROTOCOLS, script));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn the_error_of_a_service_is_passed_on_and_reported() {
    let ledger = Ledger::default();
    let service = tower::service_fn(|_: Request<()>| ready(Err::<Response<Script>, _>("full")));
    let error = budgeted(Budget::new(), &ledger, service)
        .oneshot(Request::new(()))
        .now_or_never()
        .unwrap()
        .unwrap_err();
    assert_eq!(error, "full");
    assert_eq!(ledger.outcomes(), [Outcome::Error]);
}

#[test]
fn a_status_is_an_error_from_500_on() {
    for (status, outcome) in [
        (StatusCode::NOT_FOUND, Outcome::Ok),
        (StatusCode::from_u16(499).unwrap(), Outcome::Ok),
        (StatusCode::INTERNAL_SERVER_ERROR, Outcome::Error),
        (StatusCode::SERVICE_UNAVAILABLE, Outcome::Error),
    ] {
        let ledger = Ledger::default();
        let script = || Script::new([Data("a")]).telling_its_end();
        let get = answer(Budget::new(), &ledger, Method::GET, status, script());
        assert_eq!(next(&mut get.into_body()), data("a"));
        drop(answer(Budget::new(), &ledger, Method::HEAD, status, script()));
        assert_eq!(ledger.outcomes(), [outcome, outcome], "{status}");
    }
}

#[test]
fn a_failed_answer_that_is_not_taken_is_cancelled_all_the_same() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a")]);
    drop(answer(Budget::new(), &ledger, Method::GET, StatusCode::BAD_GATEWAY, script));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
}

#[test]
fn bodies_of_other_crates_end_as_servers_use_them() {
    let ledger = Ledger::default();
    let full = |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Full::from("hello"))));
    let full = budgeted(Budget::new(), &ledger, tower::service_fn(full));
    let response = full.oneshot(Request::new(())).now_or_never().unwrap().unwrap();
    let mut body = Box::pin(response.into_body());
    assert_eq!(next(&mut body), data("hello"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok], "at the last frame");

    let empty = |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
    let mut empty = budgeted(Budget::new(), &ledger, tower::service_fn(empty));
    drop(empty.call(Request::new(())).now_or_never());
    assert_eq!(ledger.outcomes(), [Outcome::Ok, Outcome::Ok]);
}

#[test]
fn the_body_is_dropped_inside_the_scope_on_every_path() {
    let site = DropSite::default();
    let ledger = Ledger::default();
    let script = |steps: &[Step]| Script::new(steps.iter().copied()).dropped_at(&site);
    let polled = |script: Script, polls: usize| {
        let mut body = body(Budget::new(), &ledger, script);
        for _ in 0..polls {
            next(&mut body);
        }
        // What is gone at the end does not wait for the server to drop the body.
        let inside = site.inside();
        drop(body);
        inside.len()
    };
    assert_eq!(polled(script(&[]), 1), 1, "end of stream");
    assert_eq!(polled(script(&[Data("a")]).telling_its_end(), 1), 2, "told end");
    assert_eq!(polled(script(&[Trailers]), 1), 3, "trailers");
    assert_eq!(polled(script(&[Fail]), 1), 4, "error");
    assert_eq!(polled(script(&[Data("a")]), 1), 4, "midway");
    assert_eq!(polled(script(&[]), 0), 5, "unpolled");
    assert_eq!(site.inside(), [true; 6]);
}

#[test]
fn what_is_refused_to_the_destructor_of_a_body_comes_after_its_end() {
    let ledger = Ledger::default();
    let service = |_: Request<()>| {
        let held = CallOnDrop;
        let body = poll_fn(move |_| {
            let _ = &held;
            Poll::Ready(None::<Result<Frame<Bytes>, Infallible>>)
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(body))))
    };
    let budget = Budget::new().external_calls(Limit::hard(0));
    let mut service = budgeted(budget, &ledger, tower::service_fn(service));
    let answer = service.call(Request::new(())).now_or_never().expect("ready").expect("infallible");
    assert_eq!(next(&mut Box::pin(answer.into_body())), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.violations().len(), 1);
}

/// The future of a service that is not dropped by its own end, as those of combinators are.
struct Answering {
    end: Poll<()>,
    _held: Dropped,
}

impl Future for Answering {
    type Output = Result<Response<Script>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.end.map(|()| Ok(Response::new(Script::new([]))))
    }
}

#[test]
fn the_future_is_dropped_inside_the_scope_on_every_path() {
    let site = DropSite::default();
    let mut service = budgeted(
        Budget::new(),
        &Ledger::default(),
        tower::service_fn(|request: Request<Poll<()>>| Answering {
            end: request.into_body(),
            _held: site.guard(),
        }),
    );
    let mut request = |end| Box::pin(service.call(Request::new(end)));
    let mut done = request(Poll::Ready(()));
    assert!(poll_once(done.as_mut()).is_ready());
    assert_eq!(site.inside(), [true], "gone as soon as it is done");
    let mut dropped = request(Poll::Pending);
    assert!(poll_once(dropped.as_mut()).is_pending());
    drop(dropped);
    drop(request(Poll::Pending));
    assert_eq!(site.inside(), [true; 3]);
}

/// How a request ends whose body follows this script, polled so often and then dropped.
fn expected(script: &[Step], tells_its_end: bool, length: Option<u64>, polls: usize) -> Outcome {
    let mut sent = 0;
    for taken in 0..polls {
        match script.get(taken) {
            None | Some(Trailers) => return Outcome::Ok,
            Some(Fail) => return Outcome::Error,
            Some(Data(text)) => {
                sent += text.len() as u64;
                if tells_its_end && taken + 1 == script.len() {
                    return Outcome::Ok;
                }
            }
            Some(_) => {}
        }
    }
    let empty = tells_its_end && script.is_empty();
    let length = if empty { Some(0) } else { length };
    if length == Some(sent) { Outcome::Ok } else { Outcome::Cancelled }
}

proptest! {
    #[test]
    fn whatever_a_body_does_it_is_reported_once(
        steps in prop::collection::vec(
            prop_oneof![4 => Just(Data("ab")), 2 => Just(Wait), 1 => Just(Trailers), 1 => Just(Fail)],
            0..6,
        ),
        tells_its_end: bool,
        length in prop::option::of(0_u64..12),
        polls in 0_usize..9,
    ) {
        let ledger = Ledger::default();
        let mut script = Script::new(steps.iter().copied());
        if tells_its_end {
            script = script.telling_its_end();
        }
        if let Some(length) = length {
            script = script.of_length(length);
        }
        let mut body = body(Budget::new(), &ledger, script);
        for _ in 0..polls {
            next(&mut body);
        }
        drop(body);
        prop_assert_eq!(ledger.outcomes(), [expected(&steps, tells_its_end, length, polls)]);
    }
}
