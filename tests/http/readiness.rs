//! Clients that are not ready: the wait for them is part of the call.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use request_budget::http::{ExternalError, ExternalLayer, ExternalService};
use request_budget::{Budget, BudgetExt, Limit, Resource, Usage};
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::limit::ConcurrencyLimit;
use tower::load_shed::{LoadShed, error::Overloaded};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{Ledger, ms, poll_once};

/// A client that makes one call at a time, each of so many milliseconds. A clone of it occupies the
/// only place.
fn one_at_a_time() -> impl Service<
    u64,
    Response = u64,
    Error = Infallible,
    Future: Future<Output = Result<u64, Infallible>> + Send + 'static,
> + Clone {
    let client = service_fn(|time| async move {
        sleep(ms(time)).await;
        Ok(time)
    });
    ConcurrencyLimit::new(client, 1)
}

fn external<S: Clone>(client: &S) -> ExternalService<S> {
    ExternalLayer::new("ledger").layer(client.clone())
}

fn half_a_second() -> Budget {
    Budget::new().external_timeout(ms(500))
}

/// Takes the only place, until the call that is returned is over or dropped.
async fn occupy<S: Service<u64, Error = Infallible> + Clone>(client: &S, time: u64) -> S::Future {
    let mut client = client.clone();
    client.ready().await.expect("infallible").call(time)
}

fn poll_ready<S: Service<u64>>(client: &mut S) -> Poll<Result<(), S::Error>> {
    client.poll_ready(&mut Context::from_waker(Waker::noop()))
}

fn used() -> (u64, Duration) {
    let usage = Usage::current().expect("in work");
    (usage.external_calls, usage.external_time)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_never_ready_is_cut_and_counted() {
    let told = Ledger::default();
    let inner = one_at_a_time();
    let client = external(&inner);
    let occupied = occupy(&inner, 0).await;
    let work = async {
        let started = Instant::now();
        let error = client.clone().oneshot(7).await.unwrap_err();
        assert_eq!(started.elapsed(), ms(500));
        let ExternalError::Cut(cut) = error else { panic!("{error}") };
        let message = "a call of order was cut: 500ms in one external call, limit 500ms: call to \"ledger\", 500ms in all";
        assert_eq!(cut.to_string(), message);
        drop(occupied);
        assert_eq!(client.oneshot(7).await.unwrap(), 7, "its place in the queue is free");
    };
    let work = work.budgeted("order", half_a_second()).with_reporter(told.clone());
    work.await.unwrap();
    let usage = told.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (2, ms(507)));
    assert_eq!(told.messages().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_wait_and_the_call_are_one() {
    let inner = one_at_a_time();
    let client = external(&inner);
    let work = async {
        let started = Instant::now();
        tokio::spawn(occupy(&inner, 300).await);
        assert_eq!(client.clone().oneshot(100).await.unwrap(), 100);
        assert_eq!((started.elapsed(), used()), (ms(400), (1, ms(400))));

        tokio::spawn(occupy(&inner, 300).await);
        let cut = client.clone().oneshot(201).await;
        assert!(matches!(cut, Err(ExternalError::Cut(_))), "{cut:?}");
        assert_eq!((started.elapsed(), used()), (ms(900), (2, ms(900))));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn when_the_time_is_up_the_service_is_ready_until_it_is_called() {
    let inner = one_at_a_time();
    let mut client = external(&inner);
    let occupied = occupy(&inner, 0).await;
    let work = async {
        assert!(poll_ready(&mut client).is_pending());
        advance(ms(499)).await;
        assert!(poll_ready(&mut client).is_pending());
        advance(ms(1)).await;
        // The timer rings in a task of its own.
        yield_now().await;
        for _ in 0..2 {
            assert!(matches!(poll_ready(&mut client), Poll::Ready(Ok(()))));
        }
        assert!(matches!(client.call(5).await, Err(ExternalError::Cut(_))));
        // Nothing is the matter with the client.
        assert!(poll_ready(&mut client).is_pending());
        drop(occupied);
        assert!(matches!(poll_ready(&mut client), Poll::Ready(Ok(()))));
        assert_eq!(client.call(5).await.unwrap(), 5);
        assert_eq!(used(), (2, ms(505)));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_ready_after_all_is_called() {
    let inner = one_at_a_time();
    let mut client = external(&inner);
    let occupied = occupy(&inner, 0).await;
    let work = async {
        // Cut, and not called yet.
        assert!(poll_ready(&mut client).is_pending());
        advance(ms(500)).await;
        yield_now().await;
        assert!(poll_ready(&mut client).is_ready());
        drop(occupied);
        assert!(poll_ready(&mut client).is_ready());
        assert_eq!(client.call(400).await.unwrap(), 400);

        // Left alone for longer than the wait may take: the call has the whole time.
        let occupied = occupy(&inner, 0).await;
        assert!(poll_ready(&mut client).is_pending());
        drop(occupied);
        advance(ms(900)).await;
        assert!(poll_ready(&mut client).is_ready());
        assert_eq!(client.call(400).await.unwrap(), 400);
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_reserved_is_given_back_with_the_service() {
    let inner = one_at_a_time();
    let client = external(&inner);
    let work = async {
        let mut reserved = client.clone();
        assert!(poll_ready(&mut reserved).is_ready());
        let mut other = client.clone();
        assert!(poll_ready(&mut other).is_pending());
        drop(reserved);
        assert!(poll_ready(&mut other).is_ready());
        // The one that was polled is the one that is called.
        assert_eq!(other.call(1).await.unwrap(), 1);
        // Reserved and not used is no call; waited for is one.
        assert_eq!(used(), (1, ms(1)));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_given_up_is_counted_with_its_time() {
    let inner = one_at_a_time();
    let client = external(&inner);
    let _occupied = occupy(&inner, 0).await;
    let work = async {
        assert!(timeout(ms(70), client.clone().oneshot(1)).await.is_err());
        assert_eq!(used(), (1, ms(70)));
        // A clone waits for itself.
        let mut waiting = client.clone();
        assert!(poll_ready(&mut waiting).is_pending());
        let mut clone = waiting.clone();
        assert_eq!(used().0, 2);
        assert!(poll_ready(&mut clone).is_pending());
        assert!(poll_ready(&mut waiting).is_pending());
        assert_eq!(used().0, 3);
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_takes_no_longer_than_the_work() {
    let inner = one_at_a_time();
    let client = external(&inner);
    let _occupied = occupy(&inner, 0).await;
    let told = Ledger::default();
    let work = async {
        sleep(ms(700)).await;
        let error = client.clone().oneshot(1).await.unwrap_err().to_string();
        assert!(error.starts_with("a call of order was cut: 300ms in one"), "{error}");
    };
    let budget = half_a_second().total_time(ms(1_000));
    work.budgeted("order", budget).with_reporter(told.clone()).await.unwrap();
    assert_eq!(told.end().usage.external_time, ms(300));

    // Without a limit on calls the work is cut, and knows what it was waiting for.
    let told = Ledger::default();
    let work = client.clone().oneshot(1);
    let work = work.budgeted("order", Budget::new().total_time(ms(1_000)));
    let cut = work.with_reporter(told.clone()).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::TotalTime);
    let message = "order: 1s in total, limit 1s: call to \"ledger\", in flight for 1s";
    assert_eq!(told.messages(), [message]);
    assert_eq!(told.end().usage.external_calls, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_does_not_wait() {
    let inner = one_at_a_time();
    let mut client = external(&inner);
    let work = async {
        assert_eq!(client.ready().await.unwrap().call(1).await.unwrap(), 1);
        let _occupied = occupy(&inner, 0).await;
        assert!(poll_ready(&mut client).is_ready());
        let mut call = pin!(client.call(1));
        assert!(poll_once(call.as_mut()).is_pending(), "a refusal yields first");
        assert!(matches!(call.await, Err(ExternalError::Cut(_))));
    };
    let work = work.budgeted("order", Budget::new().external_calls(Limit::hard(1)));
    assert_eq!(work.await.unwrap_err().violation().resource, Resource::ExternalCalls);
}

#[tokio::test(start_paused = true)]
async fn outside_every_unit_of_work_a_client_is_waited_for() {
    let inner = one_at_a_time();
    let mut client = external(&inner);
    let occupied = occupy(&inner, 0).await;
    assert!(poll_ready(&mut client).is_pending());
    advance(Duration::from_secs(86_400)).await;
    yield_now().await;
    assert!(poll_ready(&mut client).is_pending());
    // Not begun here, so it begins where it is called.
    let work = async {
        drop(occupied);
        assert_eq!(client.ready().await.unwrap().call(400).await.unwrap(), 400);
        assert_eq!(used(), (1, ms(400)));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_kept_waits_anew_in_other_work() {
    let inner = one_at_a_time();
    let mut client = external(&inner);
    let occupied = occupy(&inner, 0).await;
    let told = Ledger::default();
    let first = async {
        assert!(timeout(ms(100), client.ready()).await.is_err());
        sleep(ms(50)).await;
    };
    first.budgeted("first", half_a_second()).with_reporter(told.clone()).await.unwrap();
    // Charged up to the end of the work, since the service is still there.
    assert_eq!(told.end().usage.external_time, ms(150));
    advance(ms(10_000)).await;
    let second = async {
        let started = Instant::now();
        assert!(matches!(client.ready().await.unwrap().call(1).await, Err(ExternalError::Cut(_))));
        assert_eq!((started.elapsed(), used()), (ms(500), (1, ms(500))));
    };
    second.budgeted("second", half_a_second()).await.unwrap();
    drop((client, occupied));

    // Waited for in one work, and called in another.
    let mut client = external(&inner);
    let first = async {
        let occupied = occupy(&inner, 0).await;
        assert!(poll_ready(&mut client).is_pending());
        drop(occupied);
        assert!(poll_ready(&mut client).is_ready());
    };
    first.budgeted("first", half_a_second()).await.unwrap();
    let second = async {
        assert_eq!(client.call(1).await.unwrap(), 1);
        assert_eq!(used(), (1, ms(1)));
    };
    second.budgeted("second", half_a_second()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn load_is_shed_at_once_inside_and_outside() {
    let inner = one_at_a_time();
    let _occupied = occupy(&inner, 0).await;
    let work = async {
        let client = ExternalLayer::new("ledger").layer(LoadShed::new(inner.clone()));
        let ExternalError::Inner(error) = client.oneshot(1).await.unwrap_err() else {
            panic!("not a cut")
        };
        assert!(error.is::<Overloaded>());
        let client = LoadShed::new(external(&inner));
        assert!(client.oneshot(1).await.unwrap_err().is::<Overloaded>());
        assert_eq!(used(), (2, Duration::ZERO));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}

/// Not ready when it is asked first, and closed then; it cannot be cloned.
struct Closing {
    was_asked: bool,
}

impl Service<u64> for Closing {
    type Response = ();
    type Error = &'static str;
    type Future = Ready<Result<(), &'static str>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        if std::mem::replace(&mut self.was_asked, true) {
            return Poll::Ready(Err("closed"));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, _: u64) -> Self::Future {
        ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_client_ends_the_wait() {
    let mut client = ExternalLayer::new("ledger").layer(Closing { was_asked: false });
    let work = async {
        let error = client.ready().await.err().expect("is closed");
        assert!(matches!(&error, ExternalError::Inner(_)), "{error}");
        sleep(ms(900)).await;
        assert_eq!(used(), (1, Duration::ZERO));
    };
    work.budgeted("order", half_a_second()).await.unwrap();
}
