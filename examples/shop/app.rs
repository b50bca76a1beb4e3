//! The service: its state, its routes, and the budget of each.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use request_budget::report::Reporter;
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetLayer, Cut, Limit};
use sqlx::Sqlite;

use crate::{catalogue, payments, trouble};

#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub(crate) pool: Pool<Sqlite>,
    pub(crate) http: reqwest::Client,
    pub(crate) payments: Arc<str>,
}

impl Shop {
    pub(crate) fn new(pool: Pool<Sqlite>, payments: String) -> Self {
        Self { pool, http: reqwest::Client::new(), payments: payments.into() }
    }
}

/// The budget of a request.
pub(crate) fn usual() -> Budget {
    Budget::new()
        .queries(Limit::soft(20).and_hard(200))
        .repeated_queries(5)
        .rows(1_000)
        .query_time(Duration::from_millis(200))
        .slow_query(Duration::from_millis(100))
        .memory(8 << 20)
        .poll_time(Duration::from_millis(50))
        .response_bytes(1 << 20)
        .external_timeout(Duration::from_millis(300))
        .total_time(Duration::from_secs(3))
}

/// The budget of a download: as usual, but long.
pub(crate) fn download() -> Budget {
    usual()
        .rows(50_000)
        .query_time(Duration::from_secs(10))
        .slow_query(Duration::from_secs(10))
        .response_bytes(16 << 20)
        .total_time(Duration::from_secs(20))
}

pub(crate) fn router(shop: Shop, reporter: impl Reporter) -> Router {
    let (usual, download) = (usual(), download());
    let by_route = move |request: &Request| match request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    {
        Some("/comments/export") => download.clone(),
        _ => usual.clone(),
    };
    Router::new()
        .route("/posts", get(catalogue::posts))
        .route("/posts/{id}", get(catalogue::post))
        .route("/posts/n-plus-one", get(catalogue::posts_n_plus_one))
        .route("/comments", get(catalogue::comments))
        .route("/comments/n-plus-one", get(catalogue::comments_n_plus_one))
        .route("/comments/export", get(catalogue::export))
        .route("/feed", get(catalogue::feed))
        .route("/report", get(catalogue::report))
        .route("/orders", post(catalogue::order))
        .route("/quote/{id}", get(payments::quote))
        .route("/export/hog", get(trouble::hog))
        .route("/hash", get(trouble::hash))
        .route("/stuck", get(trouble::stuck))
        .route("/panic", get(trouble::panic))
        .with_state(shop)
        .layer(BudgetLayer::new(by_route).with_reporter(reporter))
}

/// The answer to a request that failed.
#[derive(Debug)]
pub(crate) struct Problem(StatusCode, String);

impl Problem {
    pub(crate) fn not_found(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, format!("there is no such {what}"))
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<reqwest::Error> for Problem {
    fn from(error: reqwest::Error) -> Self {
        Self(StatusCode::BAD_GATEWAY, error.to_string())
    }
}

impl From<Cut> for Problem {
    fn from(cut: Cut) -> Self {
        Self(StatusCode::GATEWAY_TIMEOUT, cut.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}
