//! What is charged to which unit of work.

use std::future::{pending, poll_fn, ready};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::Request;
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Limit, Usage};
use tokio::task::yield_now;
use tower::{Layer, Service};

use crate::support::{
    CallOnDrop, DropSite, Given, Holding, Ledger, Script, Step, body, budgeted, call, data,
    handled, ms, next, poll_once,
};

/// The external calls charged to the work that runs here.
fn charged() -> Option<u64> {
    Usage::current().map(|usage| usage.external_calls)
}

fn names<const N: usize>(calls: [(&str, u64); N]) -> Vec<(String, u64)> {
    calls.map(|(work, calls)| (work.to_owned(), calls)).into()
}

#[test]
fn outside_every_unit_of_work_nothing_is_charged() {
    call();
    assert_eq!(Usage::current(), None);
    assert_eq!(Budget::remaining_time(), None);
}

#[test]
fn the_scope_is_left_after_each_poll() {
    let ledger = Ledger::default();
    let work = async {
        call();
        yield_now().await;
        call();
        charged()
    };
    let mut work = Box::pin(work.budgeted("task", Budget::new()).with_reporter(ledger.clone()));
    assert_eq!(Usage::current(), None, "made, not entered");
    assert!(poll_once(work.as_mut()).is_pending());
    assert_eq!(Usage::current(), None);
    call(); // to nobody
    assert_eq!(poll_once(work.as_mut()), Poll::Ready(Ok(Some(2))));
    assert_eq!(Usage::current(), None);
    assert_eq!(ledger.calls(), names([("task", 2)]));
}

#[test]
fn the_call_the_future_and_the_body_of_a_request_are_in_its_scope() {
    let ledger = Ledger::default();
    let service = tower::service_fn(|_: Request<()>| {
        call();
        async {
            call();
            yield_now().await;
            call();
            let script = Script::new([Step::Data("a")]); // which looks for its scope itself
            Ok::<_, std::convert::Infallible>(http::Response::new(script))
        }
    });
    let mut future = Box::pin(budgeted(Budget::new(), &ledger, service).call(Request::new(())));
    assert_eq!(Usage::current(), None);
    assert!(poll_once(future.as_mut()).is_pending());
    let Poll::Ready(Ok(answer)) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(Usage::current(), None);
    let mut body = Box::pin(answer.into_body());
    assert_eq!((next(&mut body), Usage::current()), (data("a"), None));
    assert_eq!((next(&mut body), Usage::current()), (Given::End, None));
    assert_eq!(ledger.calls(), names([("GET (no route)", 3)]));
}

#[test]
fn destructors_are_charged_at_completion() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let work = Holding((CallOnDrop, site.guard()), Poll::Ready(()));
    let work = work.budgeted("task", Budget::new()).with_reporter(ledger.clone());
    let mut work = Box::pin(work);
    assert!(poll_once(work.as_mut()).is_ready());
    assert_eq!(site.inside(), [true], "not only when the future is dropped");
    assert_eq!(ledger.calls(), names([("task", 1)]));
}

#[test]
fn destructors_are_charged_on_drop() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let work = Holding((CallOnDrop, site.guard()), Poll::Pending);
    let mut work = Box::pin(work.budgeted("task", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(work.as_mut()).is_pending());
    drop(work);
    assert_eq!(site.inside(), [true]);
    assert_eq!(ledger.calls(), names([("task", 1)]));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled]);
    assert_eq!(Usage::current(), None);
}

#[test]
fn destructors_of_a_handler_are_charged() {
    let ledger = Ledger::default();
    let guard = CallOnDrop;
    let mut future = handled(Budget::new(), &ledger, async move {
        let _guard = guard;
        pending().await
    });
    assert!(poll_once(future.as_mut()).is_pending());
    drop(future);
    assert_eq!(ledger.calls(), names([("GET (no route)", 1)]));
}

#[tokio::test(start_paused = true)]
async fn destructors_of_what_is_cut_run_in_its_scope() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let work =
        Holding(site.guard(), Poll::Pending).budgeted("task", Budget::new().total_time(ms(1)));
    work.with_reporter(ledger.clone()).await.unwrap_err();
    assert_eq!(site.inside(), [true]);
}

#[test]
fn work_that_never_started_is_no_work() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let work = Holding((CallOnDrop, site.guard()), Poll::Pending);
    drop(work.budgeted("task", Budget::new()).with_reporter(ledger.clone()));
    assert_eq!(ledger.ends(), []);
    assert_eq!(site.inside(), [false]);
}

#[test]
fn work_inside_work_is_charged_to_both_and_reported_once_each() {
    let ledger = Ledger::default();
    let inner = async {
        call();
        call();
    };
    let inner = inner.budgeted("inner", Budget::new()).with_reporter(ledger.clone());
    let outer = async {
        call();
        inner.await.unwrap();
        assert_eq!(charged(), Some(3));
        call();
    };
    let outer = outer.budgeted("outer", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(outer.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.calls(), names([("inner", 2), ("outer", 4)]));
}

#[test]
fn three_deep_all_are_charged() {
    let ledger = Ledger::default();
    let deep = |name| (name, ledger.clone());
    let wrap = |(name, ledger): (&'static str, Ledger), work: BoxFuture<'static, ()>| {
        work.budgeted(name, Budget::new()).with_reporter(ledger).map(|done| done.unwrap()).boxed()
    };
    let work = wrap(deep("a"), wrap(deep("b"), wrap(deep("c"), async { call() }.boxed())));
    assert_eq!(work.now_or_never(), Some(()));
    assert_eq!(ledger.calls(), names([("c", 1), ("b", 1), ("a", 1)]));
}

#[test]
fn inner_work_dropped_with_the_outer_is_charged_to_both() {
    let ledger = Ledger::default();
    let inner = Holding(CallOnDrop, Poll::Pending)
        .budgeted("inner", Budget::new())
        .with_reporter(ledger.clone());
    let mut outer = Box::pin(inner.budgeted("outer", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(outer.as_mut()).is_pending());
    drop(outer);
    assert_eq!(ledger.calls(), names([("inner", 1), ("outer", 1)]));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled, Outcome::Cancelled]);
}

#[test]
fn a_layer_inside_a_layer_is_charged_to_both_and_reported_once_each() {
    let ledger = Ledger::default();
    let named = |name: &'static str| {
        BudgetLayer::new(Budget::new())
            .with_names(move |_: &Request<()>| name)
            .with_reporter(ledger.clone())
    };
    let service = tower::service_fn(|_: Request<()>| {
        call();
        let script = Script::new([Step::Data("abc"), Step::Data("de")]);
        ready(Ok::<_, std::convert::Infallible>(http::Response::new(script)))
    });
    let mut service = named("outer").layer(named("inner").layer(service));
    let answer = service.call(Request::new(())).now_or_never().unwrap().unwrap();
    let mut body = Box::pin(answer.into_body());
    assert_eq!(next(&mut body), data("abc"));
    assert_eq!(ledger.ends(), []);
    while next(&mut body) != Given::End {}
    drop(body);
    assert_eq!(ledger.calls(), names([("inner", 1), ("outer", 1)]));
    assert_eq!(ledger.outcomes(), [Outcome::Ok, Outcome::Ok]);
    let bytes = ledger.ends().into_iter().map(|end| end.usage.response_bytes);
    assert_eq!(bytes.collect::<Vec<_>>(), [5, 5], "each byte is handed over once");
}

#[test]
fn work_side_by_side_on_one_thread_is_told_apart() {
    let ledger = Ledger::default();
    let work = |name: &'static str, calls: u64| {
        let work = async move {
            for _ in 0..calls {
                call();
                yield_now().await;
            }
        };
        Box::pin(work.budgeted(name, Budget::new()).with_reporter(ledger.clone()))
    };
    let (mut a, mut b) = (work("a", 3), work("b", 2));
    for _ in 0..3 {
        assert!(poll_once(a.as_mut()).is_pending());
        drop(poll_once(b.as_mut()));
    }
    assert!(poll_once(a.as_mut()).is_ready());
    assert_eq!(ledger.calls(), names([("b", 2), ("a", 3)]));
}

#[test]
fn work_keeps_its_account_from_thread_to_thread() {
    let ledger = Ledger::default();
    let work = async {
        for _ in 0..3 {
            call();
            yield_now().await;
        }
    };
    let mut work = Box::pin(work.budgeted("task", Budget::new()).with_reporter(ledger.clone()));
    for _ in 0..3 {
        assert!(poll_once(work.as_mut()).is_pending());
        work = thread::spawn(move || {
            drop(poll_once(work.as_mut()));
            assert_eq!(Usage::current(), None);
            work
        })
        .join()
        .unwrap();
        if !ledger.ends().is_empty() {
            break;
        }
    }
    assert_eq!(ledger.calls(), names([("task", 3)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_carried_child_on_another_thread_is_charged_to_its_parent() {
    let ledger = Ledger::default();
    let here = thread::current().id();
    let parent = async move {
        let child = async move {
            call();
            yield_now().await;
            call();
            assert_ne!(thread::current().id(), here);
            charged()
        };
        let seen = tokio::spawn(child.in_current_budget()).await.unwrap();
        assert_eq!(seen, Some(2));
        let left = tokio::spawn(async { Usage::current() }).await.unwrap();
        assert_eq!(left, None, "not carried");
        call();
    };
    parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(ledger.calls(), names([("parent", 3)]));
}

#[test]
fn a_child_that_is_not_carried_is_charged_to_nobody() {
    let ledger = Ledger::default();
    let parent = async {
        thread::spawn(|| {
            call();
            assert_eq!(Usage::current(), None);
        })
        .join()
        .unwrap();
    };
    let parent = parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(parent.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.calls(), names([("parent", 0)]));
}

#[test]
fn the_destructors_of_a_carried_child_are_charged_where_they_run() {
    let ledger = Ledger::default();
    let run = |end| {
        let parent = async move {
            let mut child = Box::pin(Holding(CallOnDrop, end).in_current_budget());
            thread::spawn(move || {
                assert_eq!(poll_once(child.as_mut()), end);
                assert_eq!(Usage::current(), None);
                drop(child);
                assert_eq!(Usage::current(), None);
            })
            .join()
            .unwrap();
            charged()
        };
        parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone()).now_or_never()
    };
    assert_eq!(run(Poll::Pending), Some(Ok(Some(1))), "dropped");
    assert_eq!(run(Poll::Ready(())), Some(Ok(Some(1))), "completed");
}

#[test]
fn the_destructors_of_a_finished_carried_child_do_not_wait_for_its_drop() {
    let work = async {
        let mut child = Box::pin(Holding(CallOnDrop, Poll::Ready(())).in_current_budget());
        assert!(poll_once(child.as_mut()).is_ready());
        charged()
    };
    assert_eq!(work.budgeted("task", Budget::new()).now_or_never(), Some(Ok(Some(1))));
}

#[test]
fn carrying_from_outside_every_scope_changes_nothing() {
    let ledger = Ledger::default();
    let made_outside = async {
        call();
        charged()
    }
    .in_current_budget();
    let work = made_outside.budgeted("task", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(work.now_or_never(), Some(Ok(Some(1))));
    assert_eq!(ledger.calls(), names([("task", 1)]));
    assert_eq!(async { Usage::current() }.in_current_budget().now_or_never(), Some(None));
}

#[test]
fn carrying_within_the_same_work_does_not_count_twice() {
    let ledger = Ledger::default();
    let work = async {
        let child = async {
            call();
            yield_now().await;
            call();
        };
        child.in_current_budget().await;
        assert_eq!(charged(), Some(2), "its own scope is still there");
        call();
    };
    let work = work.budgeted("task", Budget::new()).with_reporter(ledger.clone());
    let mut work = Box::pin(work);
    assert!(poll_once(work.as_mut()).is_pending());
    assert!(poll_once(work.as_mut()).is_ready());
    assert_eq!(ledger.calls(), names([("task", 3)]));
}

#[test]
fn a_child_carried_into_other_work_is_charged_to_its_own() {
    let ledger = Ledger::default();
    let (sender, receiver) = mpsc::channel();
    let first = async {
        sender.send(Box::pin(async { call() }.in_current_budget())).unwrap();
        yield_now().await;
    };
    let mut first = Box::pin(first.budgeted("first", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(first.as_mut()).is_pending());
    let second = receiver.recv().unwrap().budgeted("second", Budget::new());
    assert_eq!(second.with_reporter(ledger.clone()).now_or_never(), Some(Ok(())));
    assert!(poll_once(first.as_mut()).is_ready());
    assert_eq!(ledger.calls(), names([("second", 0), ("first", 1)]));
}

#[test]
fn a_child_carried_from_inner_work_is_charged_to_all_around_it() {
    let ledger = Ledger::default();
    let inner = async {
        let child = async { call() }.in_current_budget();
        thread::spawn(move || child.now_or_never().unwrap()).join().unwrap();
    };
    let inner = inner.budgeted("inner", Budget::new()).with_reporter(ledger.clone());
    let outer = inner.budgeted("outer", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(outer.now_or_never(), Some(Ok(Ok(()))));
    assert_eq!(ledger.calls(), names([("inner", 1), ("outer", 1)]));
}

#[test]
fn a_child_that_outlives_its_parent_is_in_no_report() {
    let ledger = Ledger::default();
    let parent = async {
        call();
        let child = async {
            call();
            charged()
        };
        Some(child.in_current_budget())
    };
    let parent = parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    let child = parent.now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(child.now_or_never(), Some(Some(2)), "it runs on, in the account of its parent");
    assert_eq!(ledger.calls(), names([("parent", 1)]));
    assert_eq!(Usage::current(), None);
}

#[test]
fn spawned_work_of_its_own_has_no_parent() {
    let ledger = Ledger::default();
    let inner_ledger = ledger.clone();
    let mut request = handled(Budget::new(), &ledger, async move {
        let own = async { call() }.budgeted("own", Budget::new()).with_reporter(inner_ledger);
        thread::spawn(|| own.now_or_never().unwrap().unwrap()).join().unwrap();
        Script::new([]).telling_its_end()
    });
    let Poll::Ready(answer) = poll_once(request.as_mut()) else { panic!("ready") };
    drop(answer);
    assert_eq!(ledger.calls(), names([("own", 1), ("GET (no route)", 0)]));
}

#[test]
fn carried_work_of_its_own_has_a_parent() {
    let ledger = Ledger::default();
    let inner_ledger = ledger.clone();
    let parent = async {
        let own = async { call() }.budgeted("own", Budget::new()).with_reporter(inner_ledger);
        let own = own.in_current_budget();
        thread::spawn(|| own.now_or_never().unwrap().unwrap()).join().unwrap();
    };
    let parent = parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(parent.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.calls(), names([("own", 1), ("parent", 1)]));
}

#[test]
fn work_belongs_to_where_it_started() {
    let ledger = Ledger::default();
    let own = async {
        yield_now().await;
        call();
    };
    let mut own = Box::pin(own.budgeted("own", Budget::new()).with_reporter(ledger.clone()));
    let started = poll_fn(|_| Poll::Ready(poll_once(own.as_mut()).is_pending()));
    let parent = started.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(parent.now_or_never(), Some(Ok(true)));
    // Polled on outside, it still counts for the one in which it began.
    let other = own.budgeted("other", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(other.now_or_never(), Some(Ok(Ok(()))));
    assert_eq!(ledger.calls(), names([("parent", 0), ("own", 1), ("other", 0)]));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_outer_work_holds_in_the_inner() {
    let ledger = Ledger::default();
    let inner = async { ready(()).external("payments").await };
    let inner = inner.budgeted("inner", Budget::new()).with_reporter(ledger.clone());
    let outer = async {
        call();
        inner.await
    };
    let outer = outer.budgeted("outer", Budget::new().external_calls(Limit::hard(1)));
    let cut = outer.with_reporter(ledger.clone()).now_or_never().unwrap().unwrap_err();
    let message = "outer was cut: 2 external calls, limit 1: call to \"payments\"";
    assert_eq!(cut.to_string(), message);
    assert_eq!(
        ledger.calls(),
        names([("inner", 0), ("outer", 1)]),
        "a refused call is not counted"
    );
    assert_eq!(ledger.messages().len(), 1, "the inner one crossed nothing");
}

#[test]
fn a_limit_of_the_inner_work_leaves_the_outer_alone() {
    let ledger = Ledger::default();
    let inner = async { ready(()).external("payments").await };
    let inner = inner.budgeted("inner", Budget::new().external_calls(Limit::hard(0)));
    let inner = inner.with_reporter(ledger.clone());
    let outer = async {
        inner.await.unwrap_err();
        call();
    };
    let outer = outer.budgeted("outer", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(outer.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.outcomes(), [Outcome::Cut, Outcome::Ok]);
    assert_eq!(ledger.calls(), names([("inner", 0), ("outer", 1)]));
}

#[tokio::test(start_paused = true)]
async fn the_time_left_is_that_of_the_tightest_limit_around() {
    let left = async { Budget::remaining_time() };
    let seconds = |n: u64| Budget::new().total_time(ms(n * 1_000));
    let tight_outside = left.budgeted("inner", seconds(5)).budgeted("outer", seconds(2));
    assert_eq!(tight_outside.await, Ok(Ok(Some(ms(2_000)))));
    let left = async { Budget::remaining_time() };
    let tight_inside = left.budgeted("inner", seconds(2)).budgeted("outer", seconds(5));
    assert_eq!(tight_inside.await, Ok(Ok(Some(ms(2_000)))));
    let left = async { Budget::remaining_time() };
    assert_eq!(left.budgeted("task", Budget::new()).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn outer_work_that_is_cut_cancels_the_inner() {
    let ledger = Ledger::default();
    let inner = pending::<()>().budgeted("inner", Budget::new()).with_reporter(ledger.clone());
    let outer = inner.budgeted("outer", Budget::new().total_time(ms(10)));
    outer.with_reporter(ledger.clone()).await.unwrap_err();
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled, Outcome::Cut]);
}

#[test]
fn a_body_is_charged_to_the_request_that_made_it_wherever_it_is_polled() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new(), &ledger, Script::new([Step::Data("abc")]));
    let proxying = poll_fn(|_| Poll::Ready(next(&mut body)));
    let proxy = proxying.budgeted("proxy", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(proxy.now_or_never(), Some(Ok(data("abc"))));
    drop(body);
    let bytes = ledger.ends().into_iter().map(|end| (end.work, end.usage.response_bytes));
    let expected = [("proxy".to_owned(), 0), ("GET (no route)".to_owned(), 3)];
    assert_eq!(bytes.collect::<Vec<_>>(), expected);
}

#[test]
fn a_request_that_is_called_outside_and_polled_inside_other_work_belongs_to_it() {
    let ledger = Ledger::default();
    let request = handled(Budget::new(), &ledger, async {
        call();
        yield_now().await;
        call();
        Script::new([]).telling_its_end()
    });
    let parent = async { drop(request.await) };
    let parent = parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    let mut parent = Box::pin(parent);
    while poll_once(parent.as_mut()).is_pending() {}
    assert_eq!(ledger.calls(), names([("GET (no route)", 2), ("parent", 2)]));
}

#[test]
fn work_that_started_outside_is_never_charged_to_who_polls_it_later() {
    let ledger = Ledger::default();
    let own = async {
        yield_now().await;
        call();
    };
    let mut own = Box::pin(own.budgeted("own", Budget::new()));
    assert!(poll_once(own.as_mut()).is_pending());
    let parent = async { own.await.unwrap() };
    let parent = parent.budgeted("parent", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(parent.now_or_never(), Some(Ok(())));
    assert_eq!(ledger.calls(), names([("parent", 0)]));
}

#[tokio::test(start_paused = true)]
async fn work_that_its_own_child_waits_for_is_not_its_own_parent() {
    let whole = Arc::new(OnceLock::<Shared<_>>::new());
    let again = Arc::clone(&whole);
    let work = async move {
        let whole = again.get().unwrap().clone();
        let child = tokio::time::timeout(ms(300), whole).in_current_budget();
        tokio::spawn(child);
        tokio::time::sleep(ms(100)).await;
        call();
    };
    let ledger = Ledger::default();
    let work = work.budgeted("work", Budget::new()).with_reporter(ledger.clone());
    let work: BoxFuture<'static, _> = Box::pin(work.map(drop));
    let work = work.shared();
    whole.set(work.clone()).unwrap();
    work.await;
    assert_eq!(ledger.calls(), names([("work", 1)]));
}

#[tokio::test(start_paused = true)]
async fn work_is_woken_when_inner_work_in_another_task_crosses_its_limit() {
    let started = tokio::time::Instant::now();
    let ledger = Ledger::default();
    let outer = async {
        let request = handled(Budget::new(), &ledger, async {
            tokio::time::sleep(ms(50)).await;
            async {}.external("payments").await.unwrap();
            assert!(async {}.external("payments").await.is_err());
            pending().await
        });
        tokio::spawn(request).await.unwrap()
    };
    let budget = Budget::new().external_calls(Limit::hard(1));
    outer.budgeted("outer", budget).await.unwrap_err();
    assert_eq!(started.elapsed(), ms(50));
}

/// A task that lives as long as somebody may wake it, as simple executors have it.
struct Kept(Mutex<Option<BoxFuture<'static, ()>>>);

impl Wake for Kept {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn the_last_waker_of_a_task_may_take_a_child_of_the_work_with_it() {
    let (sender, ended) = mpsc::channel();
    // Under a lock of ours it would wait for itself.
    thread::spawn(move || {
        let task = Arc::new(Kept(Mutex::default()));
        let holder = Arc::downgrade(&task);
        let work = async move {
            let late = CallOnDrop;
            let child = async move { drop(late) }.in_current_budget();
            *holder.upgrade().unwrap().0.lock().unwrap() = Some(Box::pin(child));
            pending::<()>().await
        };
        let budget = Budget::new().external_calls(Limit::hard(0));
        let mut work = Box::pin(work.budgeted("work", budget));
        let waker = Waker::from(task);
        assert!(work.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        assert!(matches!(poll_once(work.as_mut()), Poll::Ready(Err(_))));
        sender.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).unwrap();
}
