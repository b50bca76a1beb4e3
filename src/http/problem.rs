//! Problem details (RFC 9457) for requests that were cut.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use super::grpc::GrpcStatus;
use super::reject::Reject;
use crate::violation::Violation;

/// Answers a request that was cut with `503` and JSON problem details (RFC 9457).
///
/// The details state that a limit was exceeded. They name the limit, and by how much it was
/// exceeded, only if [`with_limits`](Self::with_limits) is set, and never the statement or the
/// system that caused it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::time::Duration;
/// use axum::{Router, body::{Body, to_bytes}, routing::get};
/// use request_budget::{Budget, BudgetLayer, http::ProblemDetails};
/// use tower::ServiceExt;
///
/// let budget = Budget::new().total_time(Duration::from_secs(1));
/// let app = Router::new()
///     .route("/slow", get(std::future::pending::<()>))
///     .layer(BudgetLayer::new(budget).with_reject(ProblemDetails::new().with_limits()));
///
/// let request = http::Request::get("/slow").body(Body::empty()).unwrap();
/// let answer = app.oneshot(request).await.unwrap();
/// assert_eq!(answer.headers()["content-type"], "application/problem+json");
/// let body = to_bytes(answer.into_body(), 1_000).await.unwrap();
/// let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
/// assert_eq!(body["status"], 503);
/// assert_eq!(body["resource"], "total_time");
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ProblemDetails {
    names_limits: bool,
    grpc: GrpcStatus,
}

impl ProblemDetails {
    /// Creates details that do not name the limit.
    #[must_use]
    pub const fn new() -> Self {
        Self { names_limits: false, grpc: GrpcStatus::new() }
    }

    /// Also names the resource, what was used of it, and the limit.
    #[must_use]
    pub const fn with_limits(mut self) -> Self {
        self.names_limits = true;
        self
    }

    /// Answers gRPC calls with this status; by default with one that does not name the limit.
    #[must_use]
    pub const fn with_grpc(mut self, status: GrpcStatus) -> Self {
        self.grpc = status;
        self
    }
}

impl Reject for ProblemDetails {
    fn reject(&self, violation: &Violation) -> Response<Bytes> {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut details = json!({
            "title": "Service Unavailable",
            "status": status.as_u16(),
            "detail": "the request used more than it may",
        });
        if self.names_limits {
            let Violation { resource, limit, observed, .. } = violation;
            details["resource"] = json!(resource.name());
            details["limit"] = json!(limit);
            details["observed"] = json!(observed);
        }
        let mut answer = Response::new(Bytes::from(details.to_string()));
        *answer.status_mut() = status;
        let json = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        answer
    }

    fn reject_call(&self, violation: &Violation) -> Response<Bytes> {
        self.grpc.reject(violation)
    }
}
