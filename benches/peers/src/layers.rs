//! Layers around a handler that does nothing: what each adds to a request.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum_prometheus::PrometheusMetricLayer;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use request_budget::{Budget, BudgetLayer};
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio_metrics::TaskMonitor;
use tower::{Layer, Service, ServiceExt};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::{DefaultMakeSpan, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tracing::Level;

use crate::measure::{Side, interleave, print_added};

/// What every side is compared with in the end.
pub const YARDSTICK: &str = "tower-http `TimeoutLayer`";

/// How often the handler is pending before it answers.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// A handler in its simplest form.
#[derive(Clone)]
struct Handler;

impl Service<Request<Body>> for Handler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Answer {
        Answer { pending: PENDING.load(Relaxed) }
    }
}

struct Answer {
    pending: u32,
}

impl Future for Answer {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    // Not to be optimised into what polls it: a handler of the real world is not either.
    #[inline(never)]
    fn poll(mut self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending > 0 {
            self.pending -= 1;
            return Poll::Pending;
        }
        Poll::Ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}

/// No limit at all, but all that is counted.
pub fn no_limit() -> Budget {
    Budget::new()
}

/// Every limit that is checked by comparing, and the timer; none is crossed.
pub fn every_limit() -> Budget {
    let (many, long) = (u64::MAX / 2, Duration::from_secs(30));
    Budget::new()
        .queries(many)
        .repeated_queries(many)
        .rows(many)
        .transactions(many)
        .query_time(long)
        .slow_query(long)
        .connection_wait(long)
        .memory(many)
        .allocated(many)
        .retained(many)
        .external_calls(many)
        .external_time(long)
        .external_timeout(long)
        .total_time(long)
        .slow_request(long)
        .response_bytes(many)
        .body_idle(long)
}

/// A service made ready for measuring: requests served by so many threads at once, so many by each;
/// how long one took.
type Served = Box<dyn Fn(&Runtime, usize, u32) -> f64>;

fn served<S, B>(service: S) -> Served
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: std::fmt::Debug,
    S::Future: Send,
    B: http_body::Body<Error: std::fmt::Debug> + Send + 'static,
{
    Box::new(move |runtime, threads, requests| {
        let start = Arc::new(Barrier::new(threads));
        let tasks: Vec<_> = (0..threads)
            .map(|_| runtime.spawn(serve(service.clone(), start.clone(), requests)))
            .collect();
        let times = tasks.into_iter().map(|task| runtime.block_on(task).expect("serves"));
        times.sum::<f64>() / threads as f64
    })
}

async fn serve<S, B>(mut service: S, start: Arc<Barrier>, requests: u32) -> f64
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    // Tokio's timers give way once a task has polled so much in one go.
    const AT_ONCE: u32 = 8;
    start.wait().await;
    let since = Instant::now();
    for turn in 0..requests {
        if turn % AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
        let service = service.ready().await.expect("is ready");
        let request = Request::get("/posts").body(Body::empty()).expect("is valid");
        let mut future = pin!(service.call(request));
        // Polled again at once: what it costs to be scheduled is not what is measured.
        let response = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(response) = future.as_mut().poll(cx) {
                    return Poll::Ready(response);
                }
            }
        });
        let mut body = pin!(response.await.expect("answers").into_body());
        while let Some(frame) = body.frame().await {
            black_box(&frame);
        }
    }
    since.elapsed().as_nanos() as f64 / f64::from(requests)
}

fn all_sides() -> Vec<(&'static str, Served)> {
    let timed = every_limit().poll_time(Duration::from_secs(30));
    let crossed = every_limit().slow_request(Duration::ZERO);
    let timeout = |after| TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, after);
    let traced = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_request(DefaultOnRequest::new().level(Level::INFO))
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let monitor = TaskMonitor::new();
    let monitored = tower::service_fn(move |request| monitor.instrument(Handler.call(request)));
    vec![
        ("no layer", served(Handler)),
        ("ours, no limit", served(BudgetLayer::new(no_limit()).layer(Handler))),
        ("ours, every limit", served(BudgetLayer::new(every_limit()).layer(Handler))),
        ("ours, every limit and poll time", served(BudgetLayer::new(timed).layer(Handler))),
        ("ours, a soft limit crossed by each", served(BudgetLayer::new(crossed).layer(Handler))),
        (YARDSTICK, served(timeout(Duration::from_secs(30)).layer(Handler))),
        ("tower-http `TraceLayer`, disabled", served(TraceLayer::new_for_http().layer(Handler))),
        ("tower-http `TraceLayer`, INFO to a sink", served(traced.layer(Handler))),
        ("tokio-metrics `TaskMonitor`", served(monitored)),
        ("axum-prometheus", served(PrometheusMetricLayer::new().layer(Handler))),
        ("hotpath `AxumLayer`", served(hotpath::AxumLayer::new().layer(Handler))),
    ]
}

/// Measures and prints all of it.
pub fn run(time: Duration, only: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("builds");
    let _entered = runtime.enter();
    let _hotpath = hotpath::HotpathGuardBuilder::new("peers").build();
    for (pending, requests) in [(0, 4_000), (10, 2_000)] {
        for threads in [1, 2] {
            PENDING.store(pending, Relaxed);
            let all = all_sides();
            let kept =
                |name: &str| only.is_none_or(|only| name.contains(only)) || name == "no layer";
            let sides = all
                .iter()
                .filter(|(name, _)| kept(name) || *name == YARDSTICK)
                .map(|(name, served)| Side::new(*name, || served(&runtime, threads, requests)));
            let polls = if pending == 0 { "at once" } else { "after being pending 10 times" };
            let title = format!("Layer: a request answered {polls}, {threads} thread(s) at it");
            print_added(&title, &interleave(sides.collect(), time), YARDSTICK);
        }
    }
}

/// Serves requests on one side only, for a count of instructions.
pub fn serve_only(side: &str, pending: u32, requests: u32) {
    PENDING.store(pending, Relaxed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let _entered = runtime.enter();
    let all = all_sides();
    let (_, served) = all.iter().find(|(name, _)| *name == side).expect("there is such a side");
    served(&runtime, 1, requests);
}
