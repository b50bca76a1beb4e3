//! Requests of an axum service.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::get;
use http_body::Frame;
use http_body_util::BodyExt;
use request_budget::report::Outcome;
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, BudgetLayer, Cut, ExternalExt, Limit, Usage};
use sqlx::{Executor, Sqlite};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{Ledger, pool};

const SECOND: Duration = Duration::from_secs(1);

async fn ask(app: Router, path: &str) -> Response {
    let request = Request::get(path).body(Body::empty()).expect("a good request");
    app.oneshot(request).await.expect("routers do not fail")
}

async fn n_plus_one(State(pool): State<Pool<Sqlite>>) -> Result<String, StatusCode> {
    let ids = sqlx::query_scalar::<_, i64>("SELECT id FROM items").fetch_all(&pool).await;
    let ids = ids.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    for id in &ids {
        let item = sqlx::query("SELECT * FROM items WHERE id = $1").bind(id).fetch_one(&pool).await;
        item.map_err(|_| StatusCode::BAD_GATEWAY)?;
    }
    Ok(format!("{} items", ids.len()))
}

fn app(pool: Pool<Sqlite>, budget: Budget, ledger: &Ledger) -> Router {
    let layer = BudgetLayer::new(budget).with_reporter(ledger.clone());
    Router::new().route("/items/{page}", get(n_plus_one)).with_state(pool).layer(layer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_count_is_exact_and_names_the_statement_that_repeats() {
    let ledger = Ledger::default();
    let budget = Budget::new().queries(5).repeated_queries(9).rows(19).memory(1 << 20);
    let answer = ask(app(pool(10).await, budget, &ledger), "/items/7").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(ledger.kept().ends.is_empty(), "a request ends with its body");
    let body = answer.into_body().collect().await.expect("it is all there").to_bytes();
    assert_eq!(body, "10 items");

    let (work, outcome, usage) = ledger.end();
    assert_eq!((&*work, outcome), ("GET /items/{page}", Outcome::Ok));
    assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (11, 10, 20));
    assert_eq!((usage.unmetered, usage.observed, usage.response_bytes), (0, 0, 8));
    assert!(usage.memory.is_some_and(|bytes| bytes > 0), "{usage:?}");
    let [queries, repeated, rows] = <[String; 3]>::try_from(ledger.violations()).expect("three");
    let one = "`SELECT * FROM items WHERE id = $1`";
    assert!(queries.starts_with("GET /items/{page}: 6 queries, limit 5: "), "{queries}");
    assert!(queries.contains(one) && repeated.contains(one), "{queries}\n{repeated}");
    assert!(rows.starts_with("GET /items/{page}: 20 rows, limit 19"), "{rows}");
}

async fn insert_nine(State(pool): State<Pool<Sqlite>>) -> &'static str {
    for _ in 0..9 {
        if let Err(error) = pool.execute("INSERT INTO items DEFAULT VALUES").await {
            assert!(Cut::find(&error).is_some(), "{error}");
            return "refused";
        }
    }
    "all"
}

#[tokio::test]
async fn a_statement_past_a_hard_limit_is_not_executed() {
    let (ledger, pool) = (Ledger::default(), pool(10).await);
    let layer = BudgetLayer::new(Budget::new().queries(Limit::hard(3)));
    let routes = Router::new().route("/", get(insert_nine)).with_state(pool.clone());
    let answer = ask(routes.layer(layer.with_reporter(ledger.clone())), "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(answer);
    let (_, outcome, usage) = ledger.end();
    assert_eq!((outcome, usage.queries), (Outcome::Cut, 3));
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM items").fetch_one(&pool).await;
    assert_eq!(count.expect("the connection is free again"), 13);
}

async fn pay() -> &'static str {
    let cut = pending::<()>().external("payments").await.expect_err("it never answers");
    assert_eq!(cut.violation().work, "GET /");
    pending().await
}

#[tokio::test(start_paused = true)]
async fn total_time_answers_503_and_a_call_has_its_timeout() {
    let (ledger, started) = (Ledger::default(), Instant::now());
    let budget = Budget::new().total_time(SECOND).external_timeout(SECOND / 4);
    let layer = BudgetLayer::new(budget).with_reporter(ledger.clone());
    let answer = ask(Router::new().route("/", get(pay)).layer(layer), "/").await;
    assert_eq!((answer.status(), started.elapsed()), (StatusCode::SERVICE_UNAVAILABLE, SECOND));
    let body = answer.into_body().collect().await.expect("it is all there").to_bytes();
    assert_eq!(body, "service unavailable\n");
    let (_, outcome, usage) = ledger.end();
    assert_eq!((outcome, usage.external_calls, usage.total_time), (Outcome::Cut, 1, SECOND));
    assert_eq!(usage.external_time, SECOND / 4);
    assert_eq!(
        ledger.violations(),
        [
            "GET /: 250ms in one external call, limit 250ms: call to \"payments\", 250ms in all",
            "GET /: 1s in total, limit 1s: call to \"payments\", 250ms in all"
        ]
    );
}

/// A body whose second frame never comes.
struct Endless(bool);

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::mem::replace(&mut self.0, true) {
            false => Poll::Ready(Some(Ok(Frame::data("first".into())))),
            true => Poll::Pending,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_is_cut_as_well() {
    let ledger = Ledger::default();
    let layer = BudgetLayer::new(Budget::new().total_time(SECOND)).with_reporter(ledger.clone());
    let answer =
        ask(Router::new().route("/", get(async || Body::new(Endless(false)))).layer(layer), "/")
            .await;
    let error = answer.into_body().collect().await.expect_err("it never ends");
    assert!(Cut::find(&error).is_some(), "{error}");
    assert_eq!(ledger.end().1, Outcome::Cut);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_reported_once_and_leaves_no_scope() {
    let ledger = Ledger::default();
    let layer = BudgetLayer::new(Budget::new().total_time(SECOND)).with_reporter(ledger.clone());
    let app = Router::new().route("/", get(pending::<&'static str>)).layer(layer);
    let mut request = Box::pin(ask(app, "/"));
    let polled = request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Pending));
    drop(request);
    assert_eq!(ledger.end().1, Outcome::Cancelled);
    assert_eq!(Usage::current(), None);
}

async fn spawn_two(State(pool): State<Pool<Sqlite>>) -> &'static str {
    let query = |pool: Pool<Sqlite>| async move { pool.execute("SELECT 1").await.is_ok() };
    let carried = tokio::spawn(query(pool.clone()).in_current_budget());
    let apart = tokio::spawn(query(pool));
    assert!(carried.await.expect("no panic") && apart.await.expect("no panic"));
    "both"
}

#[tokio::test]
async fn what_is_begun_in_a_request_is_charged_to_it_where_it_is_carried_along() {
    let (ledger, pool) = (Ledger::default(), pool(0).await);
    let routes = Router::new().route("/", get(spawn_two)).with_state(pool);
    let layer = BudgetLayer::new(Budget::new().queries(5)).with_reporter(ledger.clone());
    drop(ask(routes.layer(layer), "/").await.into_body().collect().await.expect("all of it"));
    assert_eq!(ledger.end().2.queries, 1);
}
