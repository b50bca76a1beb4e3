//! Work that is over leaves no timer: while a test has paused the clock, an idle runtime jumps to
//! whatever timer comes next.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

use std::convert::Infallible;
use std::future::{Pending, pending, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use request_budget::http::ExternalLayer;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

/// Longer than every limit here.
const LONG: Duration = Duration::from_secs(1_000);

/// A runtime that notes its clock whenever its thread goes on after it was idle.
fn noting() -> (Runtime, Arc<Mutex<Vec<Instant>>>) {
    let times = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&times);
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    builder.on_thread_unpark(move || note.lock().unwrap().push(Instant::now()));
    (builder.build().unwrap(), times)
}

/// The times to which the clock jumps behind this piece of work.
fn jumps(work: impl AsyncFnOnce()) -> Vec<Duration> {
    let (runtime, times) = noting();
    let since = runtime.block_on(async {
        let since = Instant::now();
        work().await;
        assert_eq!(since.elapsed(), Duration::ZERO, "the work itself takes no time");
        tokio::time::sleep(LONG).await;
        since
    });
    let times = times.lock().unwrap();
    times.iter().map(|time| time.duration_since(since)).filter(|time| !time.is_zero()).collect()
}

fn second() -> Budget {
    let second = Duration::from_secs(1);
    Budget::new().total_time(second).external_timeout(Duration::from_millis(500))
}

async fn task() {
    tokio::task::yield_now().await;
    let call = tokio::task::yield_now().external("payments");
    call.await.unwrap();
}

/// Serves a request whose handler and body wait.
async fn request() {
    let service = service_fn(async |_: Request<()>| {
        task().await;
        let frames = stream::once(async {
            task().await;
            Ok::<_, Infallible>(Frame::data(Bytes::from("done")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames))))
    });
    let answer = BudgetLayer::new(second()).layer(service).oneshot(Request::new(())).await.unwrap();
    answer.into_body().collect().await.unwrap();
}

fn poll_once(future: impl Future) {
    assert!(pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

struct NeverReady;

impl Service<()> for NeverReady {
    type Response = ();
    type Error = Infallible;
    type Future = Pending<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, (): ()) -> Self::Future {
        pending()
    }
}

#[test]
fn the_clock_jumps_to_no_deadline_of_work_that_is_over() {
    let nothing = jumps(async || {});
    assert!(nothing.last().is_some_and(|last| *last >= LONG), "{nothing:?}");
    // A timer that is left would be seen.
    let left = jumps(async || {
        tokio::spawn(pending::<()>().budgeted("job", second()));
        tokio::task::yield_now().await;
    });
    assert_ne!(left, nothing);

    assert_eq!(jumps(request), nothing);
    assert_eq!(jumps(async || task().budgeted("job", second()).await.unwrap()), nothing);
    let spawned = async || {
        let all: Vec<_> = (0..20).map(|_| tokio::spawn(task().budgeted("job", second()))).collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
    };
    assert_eq!(jumps(spawned), nothing);
    // Aborted midway.
    let aborted = async || {
        let job = tokio::spawn(pending::<()>().external("payments").budgeted("job", second()));
        tokio::task::yield_now().await;
        job.abort();
        assert!(job.await.unwrap_err().is_cancelled());
    };
    assert_eq!(jumps(aborted), nothing);
    // A client that is kept was waited for.
    let mut client = ExternalLayer::new("payments").layer(NeverReady);
    let waited = async || {
        let waiting = poll_fn(|cx| Poll::Ready(client.poll_ready(cx).is_pending()));
        assert_eq!(waiting.budgeted("job", second()).await, Ok(true));
    };
    assert_eq!(jumps(waited), nothing);
    // Dropped without the runtime having looked at its tasks.
    assert_eq!(jumps(async || poll_once(pending::<()>().budgeted("job", second()))), nothing);
    // In a row, with pauses in between.
    let in_a_row = async || {
        for _ in 0..3 {
            request().await;
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(jumps(in_a_row), nothing);
}

/// Beside work that goes on, the deadline of that work is the next one.
#[test]
fn a_deadline_that_is_left_is_met() {
    let mut expected = jumps(async || {
        tokio::spawn(pending::<()>().budgeted("job", second()));
        tokio::task::yield_now().await;
    });
    let with_others = jumps(async || {
        tokio::spawn(pending::<()>().budgeted("job", second()));
        request().await;
        let early = Budget::new().total_time(Duration::from_millis(10));
        task().budgeted("early", early).await.unwrap();
        tokio::task::yield_now().await;
    });
    expected.retain(|time| !time.is_zero());
    assert_eq!(with_others, expected);
    assert!(expected.contains(&Duration::from_secs(1)), "{expected:?}");
}
