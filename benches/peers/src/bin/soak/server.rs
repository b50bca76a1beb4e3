//! The server: axum on hyper, the budget layer around each route, and who counts what it is asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use request_budget::report::Attributes;
use request_budget::{Budget, BudgetExt, BudgetLayer, Limit, Usage};
use tower::{Layer, Service};

use crate::ledger::{Ledger, Work};
use crate::random::Random;
use crate::works::{self, Done, ON, Stores};

pub const TOTAL: &str = "x-total-ms";
pub const QUERIES: &str = "x-queries";
pub const MEMORY: &str = "x-memory";
pub const EXTERNAL: &str = "x-external-ms";
pub const PACE: &str = "x-pace-us";
pub const PLAN: &str = "x-plan";
/// In answers: which unit of work it was.
pub const WORK: &str = "x-work";

/// No work takes longer.
pub const LONGEST: Duration = Duration::from_secs(3);

/// Serves on a free port of the loopback interface, in this runtime.
pub async fn serve(paths: &[String], stores: Arc<Stores>, ledger: Arc<Ledger>) -> SocketAddr {
    let mut router = Router::new();
    for path in paths {
        let path = path.clone();
        let route = path.clone();
        let handler = move |State(stores): State<Arc<Stores>>, request: Request| {
            let path = path.clone();
            // A task of its own would be out of scope: boxed only for its size.
            Box::pin(async move { handle(&path, stores, request).await })
        };
        router = router.route(&route, post(handler));
    }
    let tracked = tower::layer::layer_fn(move |inner| Tracked { inner, ledger: ledger.clone() });
    let app = router.layer(tracked).with_state(stores);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
    address
}

async fn handle(path: &str, stores: Arc<Stores>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let work = parts.extensions.get::<Work>().expect("is tracked").clone();
    work.step("reads the request");
    let Ok(_) = axum::body::to_bytes(body, 1 << 20).await else {
        return answer(StatusCode::BAD_REQUEST, "no whole request");
    };
    if let Some((store, "body")) = path.trim_start_matches('/').split_once('/') {
        let body = match store {
            "sqlite" => works::body(stores.sqlite.clone().expect(ON), work).await,
            "postgres" => works::body(stores.postgres.clone().expect(ON), work).await,
            _ => works::body(stores.mariadb.clone().expect(ON), work).await,
        };
        return match body {
            Ok(body) => Response::new(body),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    }
    match works::dispatch(path, stores, work).await {
        Ok(()) => answer(StatusCode::OK, "done, as far as the handler knows"),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn answer(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

/// Puts each request under a budget with a reporter of its own, and numbers it.
#[derive(Clone)]
struct Tracked<S> {
    inner: S,
    ledger: Arc<Ledger>,
}

impl<S> Service<Request> for Tracked<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if Usage::current().is_some() {
            self.ledger.fail("no scope left", || "before a request".to_owned());
        }
        let headers = request.headers();
        let plan = headers.get(PLAN).and_then(|plan| plan.to_str().ok()).unwrap_or("").to_owned();
        let pace = Duration::from_micros(number(headers, PACE).unwrap_or(1_000));
        let work = self.ledger.start(request.uri().path(), plan, pace);
        let reporter = work.reporter(work.random.one_in(7), false);
        request.extensions_mut().insert(work.clone());
        let layer = BudgetLayer::new(|request: &Request| budget(request.headers()));
        // Which has been polled ready, as the layer only forwards that.
        let inner = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, inner);
        let future = layer.with_reporter(reporter).layer(service).call(request);
        async move {
            let mut response = future.await?.map(Body::new);
            response.headers_mut().insert(WORK, HeaderValue::from(work.id));
            Ok(response)
        }
        .boxed()
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The budget for which the client asks.
fn budget(headers: &HeaderMap) -> Budget {
    let millis = |name| number(headers, name).map(Duration::from_millis);
    let mut budget = Budget::new()
        .total_time(millis(TOTAL).unwrap_or(LONGEST).min(LONGEST))
        .repeated_queries(2)
        .rows(1_000);
    if let Some(queries) = number(headers, QUERIES) {
        budget = budget.queries(Limit::hard(queries));
    }
    if let Some(bytes) = number(headers, MEMORY) {
        budget = budget.memory(Limit::hard(bytes));
    }
    if let Some(time) = millis(EXTERNAL) {
        budget = budget.external_timeout(time).external_calls(Limit::hard(2));
    }
    budget
}

/// Begins jobs beside the requests, until told to stop: half of them are left alone, the others cut
/// or aborted.
pub async fn jobs(paths: Vec<String>, stores: Arc<Stores>, ledger: Arc<Ledger>, stop: Stop) {
    let random = Random::new(u64::MAX);
    let mut running = tokio::task::JoinSet::new();
    let paths: Vec<_> = paths.into_iter().filter(|path| !path.ends_with("/body")).collect();
    while !stop.is_set() && !paths.is_empty() {
        let path = random.pick(&paths).clone();
        let is_mongo = path.starts_with("/mongodb") || path.ends_with("/all");
        let total = match random.below(3) {
            0 => Duration::from_millis(random.below(30)),
            // A retry loop ends by nothing else.
            _ if path.contains("retry") => Duration::from_millis(200),
            _ => LONGEST,
        };
        let mut budget = Budget::new().total_time(total).memory(Limit::hard(4 << 20));
        let is_refused = random.one_in(4) || path.contains("retry");
        if is_refused {
            budget = budget.queries(Limit::hard(random.below(4))).external_calls(Limit::hard(3));
        }
        let plan = format!("a job, total {total:?}, refused {is_refused}");
        let abort = random.one_in(4) && !is_mongo;
        let (stores, ledger, wait) = (stores.clone(), ledger.clone(), random.below(20));
        let handle = running.spawn(job(path, plan, budget, stores, ledger));
        // A task with a command of MongoDB must not be dropped: the docs say to wait for it.
        if abort {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                handle.abort();
            });
        }
        while running.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(random.below(10))).await;
        while running.len() >= 8 {
            running.join_next().await;
        }
    }
    while running.join_next().await.is_some() {}
}

async fn job(path: String, plan: String, budget: Budget, stores: Arc<Stores>, ledger: Arc<Ledger>) {
    // Numbered here and not before: a task that is aborted before its first poll is no unit of
    // work.
    let work = ledger.start(format!("job {path}"), plan, Duration::from_millis(3));
    let reporter = work.reporter(work.random.one_in(7), true);
    let attributes = Attributes::new().with("id", work.id);
    let body = async move { works::dispatch(&path, stores, work).await };
    let result: Result<Done, _> =
        body.budgeted("job", budget).with_attributes(attributes).with_reporter(reporter).await;
    drop(result);
}

/// Told from outside the runtime.
#[derive(Clone, Default)]
pub struct Stop(Arc<std::sync::atomic::AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Accepts connections and says nothing, until the other side hangs up.
pub async fn silent() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut rest = Vec::new();
                drop(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await);
            });
        }
    });
    address
}
