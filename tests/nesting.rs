//! How deep work can be nested: each of its polls lies on the stack of the one around it.
#![expect(clippy::redundant_async_block, reason = "a level of its own is what is measured")]
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use axum::body::{self, Body};
use axum::http::{Request, Response};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use http_body_util::BodyExt;
use request_budget::alloc::CountingAllocator;
use request_budget::{Budget, BudgetExt, BudgetLayer, TaskBudgetLayer};
use tokio::runtime;
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, ServiceExt, service_fn};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// The stack of a worker of tokio, and of a thread of the standard library.
const STACK: usize = 2 << 20;

/// The lowest point of the stack where it is made, called, polled or dropped: what lies innermost.
#[derive(Debug, Clone)]
struct Depth(Arc<AtomicUsize>);

impl Depth {
    #[inline(never)]
    fn note(&self) {
        let here = 0_u8;
        self.0.fetch_min(std::ptr::from_ref(std::hint::black_box(&here)).addr(), Relaxed);
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        self.note();
    }
}

/// Waits once.
fn wait(depth: &Depth) -> BoxFuture<'static, ()> {
    depth.note();
    let depth = depth.clone();
    async move {
        depth.note();
        tokio::task::yield_now().await;
        depth.note();
    }
    .boxed()
}

/// Has every kind of limit that costs something on each poll.
fn watched() -> Budget {
    let long = Duration::from_secs(3_600);
    Budget::new().queries(5).total_time(long).poll_time(long)
}

/// Budgets around futures, or the futures alone.
fn budgets(levels: usize, is_plain: bool, depth: &Depth) -> BoxFuture<'static, ()> {
    (0..levels).fold(wait(depth), |inner, _| match is_plain {
        true => async { inner.await }.boxed(),
        false => async { inner.budgeted("nested", watched()).await.unwrap() }.boxed(),
    })
}

fn children(levels: usize, is_plain: bool, depth: &Depth) -> BoxFuture<'static, ()> {
    let inner = (0..levels).fold(wait(depth), |inner, _| match is_plain {
        true => async { inner.await }.boxed(),
        false => async { inner.in_current_budget().await }.boxed(),
    });
    async { inner.budgeted("outermost", watched()).await.unwrap() }.boxed()
}

fn jobs(levels: usize, is_plain: bool, depth: &Depth) -> BoxFuture<'static, ()> {
    let depth = depth.clone();
    let handler = service_fn(move |()| wait(&depth).map(Ok::<_, BoxError>));
    let service = (0..levels).fold(BoxCloneService::new(handler), |inner, _| match is_plain {
        true => BoxCloneService::new(inner),
        false => BoxCloneService::new(TaskBudgetLayer::new("nested", watched()).layer(inner)),
    });
    async { service.oneshot(()).await.unwrap() }.boxed()
}

fn requests(levels: usize, is_plain: bool, depth: &Depth) -> BoxFuture<'static, ()> {
    type Service = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

    let depth = depth.clone();
    let handler = service_fn(move |_| {
        let (called, read) = (wait(&depth), depth.clone());
        async move {
            called.await;
            let frame = async move { wait(&read).map(|()| Ok::<_, Infallible>("late")).await };
            Ok(Response::new(Body::from_stream(stream::once(frame))))
        }
    });
    let service = (0..levels).fold(Service::new(handler), |inner, _| match is_plain {
        true => {
            let boxed =
                |response: Response<Body>| response.map(|body| Body::new(body.boxed_unsync()));
            Service::new(inner.map_response(boxed))
        }
        false => {
            let layered = BudgetLayer::new(watched()).layer(inner);
            Service::new(layered.map_response(|response| response.map(Body::new)))
        }
    });
    async {
        let response = service.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(body::to_bytes(response.into_body(), 10).await.unwrap(), "late");
    }
    .boxed()
}

type Make = fn(usize, bool, &Depth) -> BoxFuture<'static, ()>;

/// How much of this stack such work takes, which ends by itself, or is dropped while it waits.
fn stack_of(
    stack: usize,
    is_dropped: bool,
    make: impl FnOnce(&Depth) -> BoxFuture<'static, ()> + Send,
) -> usize {
    let used = move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _runtime = runtime.enter();
        let deepest = Arc::new(AtomicUsize::new(usize::MAX));
        let mut work = make(&Depth(Arc::clone(&deepest)));
        let here = 0_u8;
        let mut cx = Context::from_waker(Waker::noop());
        let mut polls = (0..10).map(|_| work.as_mut().poll(&mut cx));
        let last = if is_dropped { polls.next() } else { polls.find(Poll::is_ready) };
        assert_eq!(last.map(|polled| polled.is_ready()), Some(!is_dropped));
        drop(work);
        std::ptr::from_ref(&here).addr() - deepest.load(Relaxed)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(stack);
        thread.spawn_scoped(scope, used).unwrap().join().unwrap()
    })
}

/// As deep as futures can be nested anyway, so deep can budgets, without optimisation as well.
#[test]
fn a_thousand_nested_works_fit_on_the_stack_of_a_worker() {
    // Without optimisation an answer takes much room in each future that it passes, of whomever.
    let all: [(&str, Make, usize); 4] = [
        ("budgets", budgets, 1_000),
        ("children", children, 1_000),
        ("jobs", jobs, 1_000),
        ("requests", requests, 500),
    ];
    for (name, make, levels) in all {
        for is_dropped in [false, true] {
            // Asked where there is room enough: what overflows its stack can tell no more.
            let used = stack_of(8 * STACK, is_dropped, |depth| make(levels, false, depth));
            assert!(used < STACK / 5 * 4, "{name}, dropped: {is_dropped}: {used} bytes of stack");
            assert!(used > stack_of(STACK, is_dropped, |depth| make(levels, true, depth)));
            stack_of(STACK, is_dropped, |depth| make(levels, false, depth));
        }
    }
}
