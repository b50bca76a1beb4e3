//! A panic ends the work it goes through, once, and nothing else.

use std::convert::Infallible;
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Limit, Usage, Violation};
use tower::{Layer, Service};

use crate::support::{
    Holding, Ledger, Script, Step, body, budgeted, call, data, handled, next, panics, poll_once,
};

/// The next work on this thread is in no scope but its own.
fn the_thread_is_clean() {
    assert_eq!(Usage::current(), None);
    let ledger = Ledger::default();
    let mut next_request = handled(Budget::new(), &ledger, async {
        assert_eq!(Usage::current().map(|usage| usage.external_calls), Some(0));
        call();
        Script::new([]).telling_its_end()
    });
    assert!(poll_once(next_request.as_mut()).is_ready());
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.end().usage.external_calls, 1);
    assert_eq!(Usage::current(), None);
}

#[test]
fn a_panic_in_the_call_of_the_service() {
    let ledger = Ledger::default();
    let service = tower::service_fn(|_: Request<()>| {
        if Usage::current().is_some() {
            panic!("a service that panics")
        }
        ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
    });
    let mut service = budgeted(Budget::new(), &ledger, service);
    panics(|| drop(service.call(Request::new(()))));
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_in_the_future_of_the_service() {
    let ledger = Ledger::default();
    let mut future = handled(Budget::new(), &ledger, async { panic!("a handler that panics") });
    panics(|| poll_once(future.as_mut()).is_ready());
    assert_eq!(Usage::current(), None, "left before the future is dropped");
    drop(future);
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_in_the_body() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Step::Data("a"), Step::Panic]));
    assert_eq!(next(&mut body), data("a"));
    panics(|| next(&mut body));
    assert_eq!(Usage::current(), None, "left before the body is dropped");
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_in_a_budgeted_task() {
    let ledger = Ledger::default();
    let mut work = Box::pin(
        async { panic!("a task that panics") }
            .budgeted("task", Budget::new())
            .with_reporter(ledger.clone()),
    );
    panics(|| poll_once(work.as_mut()).is_ready());
    assert_eq!(Usage::current(), None);
    drop(work);
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

/// Panics when it is dropped, once.
struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        panic!("a destructor that panics")
    }
}

#[test]
fn a_panic_in_a_destructor() {
    let ledger = Ledger::default();
    let mut task = Box::pin(
        Holding(PanicOnDrop, Poll::Pending)
            .budgeted("task", Budget::new())
            .with_reporter(ledger.clone()),
    );
    assert!(poll_once(task.as_mut()).is_pending());
    panics(|| drop(task));
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_in_the_destructor_of_a_body_that_is_at_its_end() {
    /// Ends with its first frame.
    struct Last(PanicOnDrop);

    impl Body for Last {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))))
        }
    }

    let ledger = Ledger::default();
    let service = |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Last(PanicOnDrop))));
    let mut service = budgeted(Budget::new(), &ledger, tower::service_fn(service));
    let answer = service.call(Request::new(())).now_or_never().expect("ready").expect("infallible");
    let mut body = Box::pin(answer.into_body());
    let mut cx = Context::from_waker(Waker::noop());
    panics(|| body.as_mut().poll_frame(&mut cx).is_ready());
    assert_eq!(Usage::current(), None);
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_in_a_carried_future_leaves_its_scope() {
    let ledger = Ledger::default();
    let work = async { Some(async { panic!("a child that panics") }.in_current_budget()) };
    let work = work.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    let mut child = Box::pin(work.now_or_never().unwrap().unwrap().unwrap());
    panics(|| poll_once(child.as_mut()).is_ready());
    assert_eq!(Usage::current(), None);
    drop(child);
    assert_eq!(ledger.outcomes(), [Outcome::Ok], "the parent had ended before");
    the_thread_is_clean();
}

#[test]
fn a_panic_of_inner_work_is_in_both_accounts() {
    let ledger = Ledger::default();
    let inner = async { panic!("inner work that panics") }
        .budgeted("inner", Budget::new())
        .with_reporter(ledger.clone());
    let outer = inner.budgeted("outer", Budget::new()).with_reporter(ledger.clone());
    let mut outer = Box::pin(outer);
    panics(|| poll_once(outer.as_mut()).is_ready());
    drop(outer);
    assert_eq!(ledger.outcomes(), [Outcome::Panicked, Outcome::Panicked]);
    the_thread_is_clean();
}

#[test]
fn a_panic_that_the_work_catches_is_its_own_business() {
    let ledger = Ledger::default();
    let catching = poll_fn(|_| {
        panics(|| panic!("caught inside"));
        Poll::Ready(())
    });
    let work = catching.budgeted("task", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(work.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[test]
fn other_work_of_the_thread_is_not_touched() {
    let ledger = Ledger::default();
    let mut other = handled(Budget::new(), &ledger, async {
        call();
        pending::<()>().await;
        Script::new([])
    });
    assert!(poll_once(other.as_mut()).is_pending());
    a_panic_in_the_future_of_the_service();
    assert_eq!(ledger.outcomes(), []);
    drop(other);
    assert_eq!(ledger.calls(), [("GET (no route)".to_owned(), 1)]);
}

#[test]
fn a_request_goes_on_without_the_policy_the_name_or_the_answer_that_panics() {
    let service = || {
        tower::service_fn(|_: Request<()>| {
            call();
            ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
        })
    };
    let ledger = Ledger::default();
    let policy = |_: &Request<()>| -> Budget { panic!("a policy that panics") };
    let mut ours = BudgetLayer::new(policy).with_reporter(ledger.clone()).layer(service());
    assert_eq!(ours.call(Request::new(())).now_or_never().unwrap().unwrap().status(), 200);
    the_thread_is_clean();

    let name = |_: &Request<()>| -> &'static str { panic!("a naming that panics") };
    let layer = BudgetLayer::new(Budget::new()).with_names(name).with_reporter(ledger.clone());
    let answer = layer.layer(service()).call(Request::new(())).now_or_never();
    assert_eq!(answer.unwrap().unwrap().status(), 200);
    let calls = ("GET (no route)".to_owned(), 1);
    assert_eq!(ledger.calls(), [calls.clone(), calls]);
    the_thread_is_clean();

    let ledger = Ledger::default();
    let budget = Budget::new().external_calls(Limit::hard(0));
    let service = tower::service_fn(|_: Request<()>| {
        drop(ready(()).external("payments").now_or_never());
        ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
    });
    let layer = BudgetLayer::new(budget)
        .with_reject(|_: &Violation| -> Response<Bytes> { panic!("a rejection that panics") })
        .with_reporter(ledger.clone());
    let answer = layer.layer(service).call(Request::new(())).now_or_never();
    assert_eq!(answer.unwrap().unwrap().status(), 503);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    the_thread_is_clean();
}
