//! What a request is found to have used, of what the layer itself measures.

use std::sync::mpsc;

use futures_util::FutureExt;
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, Usage};
use tokio::task::yield_now;
use tokio::time::advance;

use crate::support::{
    Given, Ledger, Script, Step, body, call, data, handled, ms, next, pass, poll_once,
};
use Step::{Data, Fail, Pass, Trailers, Wait};

#[test]
fn the_bytes_of_the_body_are_counted() {
    let ledger = Ledger::default();
    let script = Script::new([Data("abc"), Wait, Data(""), Data("de"), Trailers]);
    let mut whole = body(Budget::new(), &ledger, script);
    while next(&mut whole) != Given::End {}
    assert_eq!(ledger.end().usage.response_bytes, 5);

    let ledger = Ledger::default();
    let mut failed = body(Budget::new(), &ledger, Script::new([Data("abc"), Fail]));
    while next(&mut failed) != Given::End {}
    assert_eq!(ledger.end().usage.response_bytes, 3);

    let ledger = Ledger::default();
    drop(body(Budget::new(), &ledger, Script::new([Data("abc")]).of_length(3)));
    assert_eq!(ledger.end().usage.response_bytes, 0, "not handed over");
}

#[test]
fn too_many_bytes_are_reported_when_they_are_handed_over() {
    let ledger = Ledger::default();
    let script = Script::new([Data("abc"), Data("de"), Data("f")]);
    let mut body = body(Budget::new().response_bytes(4), &ledger, script);
    assert_eq!((next(&mut body), ledger.messages().len()), (data("abc"), 0));
    assert_eq!((next(&mut body), ledger.messages().len()), (data("de"), 1));
    assert_eq!((next(&mut body), next(&mut body)), (data("f"), Given::End));
    assert_eq!(ledger.messages(), ["GET (no route): 5 B of response body, limit 4 B"]);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn the_total_time_is_from_the_call_to_the_end_of_the_body() {
    let ledger = Ledger::default();
    let mut future =
        handled(Budget::new(), &ledger, async { Script::new([Data("a"), Wait, Data("b")]) });
    advance(ms(10)).await;
    let mut body = match poll_once(future.as_mut()) {
        std::task::Poll::Ready(answer) => answer.into_body(),
        std::task::Poll::Pending => panic!("ready"),
    };
    advance(ms(20)).await;
    next(&mut body);
    advance(ms(30)).await;
    drop(body);
    advance(ms(40)).await;
    assert_eq!(ledger.end().usage.total_time, ms(60));
}

#[tokio::test(start_paused = true)]
async fn the_longest_poll_is_found_and_all_are_added_up() {
    let ledger = Ledger::default();
    let mut future = handled(Budget::new().poll_time(ms(25)), &ledger, async {
        pass(ms(10));
        Script::new([Pass(ms(30)), Data("a"), Pass(ms(20)), Data("b")])
    });
    advance(ms(1_000)).await; // nothing is polled meanwhile
    let body = match poll_once(future.as_mut()) {
        std::task::Poll::Ready(answer) => answer.into_body(),
        std::task::Poll::Pending => panic!("ready"),
    };
    let mut body = body;
    assert_eq!(ledger.messages(), [""; 0]);
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(ledger.messages(), ["GET (no route): 30ms in one poll, limit 25ms"]);
    while next(&mut body) != Given::End {}
    let usage = ledger.end().usage;
    assert_eq!((usage.poll_time, usage.busy_time), (Some(ms(30)), Some(ms(60))));
    assert_eq!(ledger.messages().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn polls_are_not_timed_without_a_limit_on_them() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Pass(ms(30))]));
    assert_eq!(next(&mut body), Given::End);
    let usage = ledger.end().usage;
    assert_eq!((usage.poll_time, usage.busy_time), (None, None));
}

#[tokio::test(start_paused = true)]
async fn the_polls_of_inner_work_are_polls_of_the_outer() {
    let ledger = Ledger::default();
    let inner = async { pass(ms(10)) }
        .budgeted("inner", Budget::new().poll_time(ms(1_000)))
        .with_reporter(ledger.clone());
    let outer = async {
        pass(ms(5));
        inner.await
    };
    let outer = outer.budgeted("outer", Budget::new().poll_time(ms(1_000)));
    outer.with_reporter(ledger.clone()).now_or_never().unwrap().unwrap().unwrap();
    let times = ledger.ends().into_iter().map(|end| (end.usage.poll_time, end.usage.busy_time));
    assert_eq!(
        times.collect::<Vec<_>>(),
        [(Some(ms(10)), Some(ms(10))), (Some(ms(15)), Some(ms(15)))]
    );
}

#[tokio::test(start_paused = true)]
async fn polls_that_only_the_outer_work_limits_are_not_shown_by_the_inner() {
    let ledger = Ledger::default();
    let inner = async { pass(ms(10)) }.budgeted("inner", Budget::new());
    let inner = inner.with_reporter(ledger.clone());
    let outer = inner.budgeted("outer", Budget::new().poll_time(ms(1)));
    outer.with_reporter(ledger.clone()).now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(ledger.ends()[0].usage.poll_time, None);
    assert_eq!(ledger.ends()[1].usage.poll_time, Some(ms(10)));
    assert_eq!(ledger.messages(), ["outer: 10ms in one poll, limit 1ms"]);
}

#[tokio::test(start_paused = true)]
async fn the_polls_of_a_carried_child_are_polls_of_all_that_it_is_carried_from() {
    let ledger = Ledger::default();
    let (sender, receiver) = mpsc::channel();
    let inner = async {
        sender.send(Box::pin(async { pass(ms(10)) }.in_current_budget())).unwrap();
        yield_now().await;
    };
    let inner = inner.budgeted("inner", Budget::new()).with_reporter(ledger.clone());
    let outer = inner.budgeted("outer", Budget::new().poll_time(ms(1)));
    let mut outer = Box::pin(outer.with_reporter(ledger.clone()));
    assert!(poll_once(outer.as_mut()).is_pending());
    // Here neither of the two is running.
    assert!(poll_once(receiver.recv().unwrap().as_mut()).is_ready());
    assert_eq!(ledger.messages(), ["outer: 10ms in one poll, limit 1ms"]);
    assert!(poll_once(outer.as_mut()).is_ready());
    assert_eq!(ledger.ends()[1].usage.busy_time, Some(ms(10)));
}

#[tokio::test(start_paused = true)]
async fn the_call_and_the_destructors_are_polls_too() {
    struct Blocking;

    impl Drop for Blocking {
        fn drop(&mut self) {
            pass(ms(40));
        }
    }

    let ledger = Ledger::default();
    let work = async {
        let _blocking = Blocking;
        std::future::pending::<()>().await;
    };
    let work = work.budgeted("task", Budget::new().poll_time(ms(25)));
    let mut work = Box::pin(work.with_reporter(ledger.clone()));
    assert!(poll_once(work.as_mut()).is_pending());
    drop(work);
    assert_eq!(ledger.messages(), ["task: 40ms in one poll, limit 25ms"]);
}

#[tokio::test(start_paused = true)]
async fn the_usage_can_be_asked_for_on_the_way() {
    let work = async {
        call();
        advance(ms(100)).await;
        call();
        Usage::current().unwrap()
    };
    let usage = work.budgeted("task", Budget::new()).await.unwrap();
    assert_eq!((usage.external_calls, usage.total_time), (2, ms(100)));
}
