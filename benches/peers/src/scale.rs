//! What a request and a statement cost when there are many of them.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, Response};
use request_budget::db::Query;
use request_budget::{BudgetExt, BudgetLayer};
use tower::{Layer, Service};

use crate::layers::every_limit;
use crate::measure::{Side, interleave, print_ratios};

/// Measures and prints all of it.
pub fn run(time: Duration) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let _entered = runtime.enter();
    // First, as long as nothing has been freed that could be used again.
    bounded();
    for (polls, title) in [(0, "answered at once"), (1, "that waits once")] {
        let sides = [1, 100, 10_000].map(|count| in_flight(count, polls));
        print_ratios(&format!("Scale: a request {title}"), &interleave(sides.into(), time));
    }
    let sides = [1, 10, 100, 1_000].map(|count| statements(count, 1));
    print_ratios("Scale: one and the same statement", &interleave(sides.into(), time));
    let sides = [1, 10, 100, 1_000].map(|count| statements(count, count));
    print_ratios("Scale: statements that are all different", &interleave(sides.into(), time));
}

type Pending = Pin<Box<dyn Future<Output = ()>>>;

/// A request under every limit that is pending so often.
fn request(polls: u32) -> Pending {
    let handler = tower::service_fn(move |_: Request<Body>| {
        let mut left = polls;
        std::future::poll_fn(move |_| {
            if left > 0 {
                left -= 1;
                return Poll::Pending;
            }
            Poll::Ready(Ok::<_, Infallible>(Response::new(Body::empty())))
        })
    });
    let mut service = BudgetLayer::new(every_limit()).layer(handler);
    let future = service.call(Request::new(Body::empty()));
    Box::pin(async move {
        black_box(future.await.is_ok());
    })
}

/// A request while others wait, so many in all.
fn in_flight(count: usize, polls: u32) -> Side<'static> {
    const TURNS: u32 = 500;
    Side::new(format!("{count} in flight"), move || {
        let mut cx = Context::from_waker(Waker::noop());
        let mut others: Vec<_> = (1..count).map(|_| request(u32::MAX)).collect();
        for waiting in &mut others {
            assert!(waiting.as_mut().poll(&mut cx).is_pending(), "it waits");
        }
        let since = Instant::now();
        for _ in 0..TURNS {
            let mut one = request(polls);
            while one.as_mut().poll(&mut cx).is_pending() {}
        }
        since.elapsed().as_nanos() as f64 / f64::from(TURNS)
    })
}

/// Statements in one unit of work, so many of them different; nothing is sent to a database.
fn statements(count: usize, different: usize) -> Side<'static> {
    let texts: Vec<_> =
        (0..different).map(|n| format!("SELECT title FROM posts_{n} WHERE id = $1")).collect();
    Side::new(format!("{count} in one request"), move || {
        let rounds = 2_000_usize.div_ceil(count);
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            let work = async {
                let since = Instant::now();
                for text in texts.iter().cycle().take(count) {
                    let mut query = Query::start(text).expect("is not refused");
                    query.add_rows(1);
                }
                spent += since.elapsed();
            };
            let mut work = std::pin::pin!(work.budgeted("scale", every_limit()));
            let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_ready(), "it waits for nothing");
        }
        spent.as_nanos() as f64 / (rounds * count) as f64
    })
}

/// What is kept of a request whose statements have no end.
fn bounded() {
    const DIFFERENT: usize = 100_000;
    let before = crate::server::resident();
    let work = async {
        for n in 0..DIFFERENT {
            let text = format!("SELECT title FROM posts_{n} WHERE id = $1");
            drop(Query::start(&text).expect("is not refused"));
        }
        crate::server::resident()
    };
    let mut work = std::pin::pin!(work.budgeted("scale", every_limit()));
    let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(after)) = polled else { panic!("it waits for nothing") };
    println!(
        "\nScale: a request with {DIFFERENT} different statements, {} bytes of text, holds {} KiB more\n",
        DIFFERENT * 41,
        after.saturating_sub(before)
    );
}
