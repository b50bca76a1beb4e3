//! The response to a request that was cut before its own response was ready.

use std::fmt;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};

use super::grpc::GrpcStatus;
use crate::report::seldom::caught;
use crate::violation::Violation;

/// Creates the response to a request that a hard limit cut.
///
/// Implemented by closures. By default the response is `503 Service Unavailable`, and that of a
/// gRPC call a [`GrpcStatus`]. Neither names the reason; a violation can contain statements, so
/// consider that before sending it to a client.
///
/// # Panics
///
/// It should not panic. If it does, the panic is caught and reported by at most one event a minute,
/// and the default response is sent.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http::Response;
/// use request_budget::{Budget, BudgetLayer, Violation};
///
/// let layer = BudgetLayer::new(Budget::new()).with_reject(|violation: &Violation| {
///     let mut answer = Response::new(Bytes::from(format!("over its {}", violation.resource)));
///     *answer.status_mut() = http::StatusCode::GATEWAY_TIMEOUT;
///     answer
/// });
/// # let _ = layer;
/// ```
pub trait Reject: Send + Sync + 'static {
    /// Creates the response to a request that this violation ended.
    fn reject(&self, violation: &Violation) -> Response<Bytes>;

    /// The same with the head of the request, if [`sees_requests`](Self::sees_requests) is true.
    fn reject_request(&self, violation: &Violation, request: &Parts) -> Response<Bytes> {
        let _ = request;
        self.reject(violation)
    }

    /// The same for a gRPC call, if [`sees_requests`](Self::sees_requests) is false.
    fn reject_call(&self, violation: &Violation) -> Response<Bytes> {
        self.reject(violation)
    }

    /// Whether the head of each request is copied and kept until its response is ready.
    fn sees_requests(&self) -> bool {
        false
    }
}

/// A [`Reject`] that sees the request. See
/// [`BudgetLayer::with_reject_by`](super::BudgetLayer::with_reject_by).
pub(super) struct ByRequest<F>(pub(super) F);

impl<F> Reject for ByRequest<F>
where
    F: Fn(&Violation, &Parts) -> Response<Bytes> + Send + Sync + 'static,
{
    fn reject(&self, _: &Violation) -> Response<Bytes> {
        unavailable()
    }

    fn reject_request(&self, violation: &Violation, request: &Parts) -> Response<Bytes> {
        (self.0)(violation, request)
    }

    fn sees_requests(&self) -> bool {
        true
    }
}

/// The response to a request that was cut: that of the user's `Reject`, or the default one.
pub(super) fn answer(
    own: Option<&dyn Reject>,
    violation: &Violation,
    request: Option<&Parts>,
    is_call: bool,
) -> Response<Bytes> {
    let usual = || if is_call { GrpcStatus::new().reject(violation) } else { unavailable() };
    let Some(own) = own else { return usual() };
    let reject = || match request {
        Some(request) => own.reject_request(violation, request),
        None if is_call => own.reject_call(violation),
        None => own.reject(violation),
    };
    caught("a `Reject`", reject, usual)
}

impl<F> Reject for F
where
    F: Fn(&Violation) -> Response<Bytes> + Send + Sync + 'static,
{
    fn reject(&self, violation: &Violation) -> Response<Bytes> {
        self(violation)
    }
}

impl fmt::Debug for dyn Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reject")
    }
}

/// The default response.
fn unavailable() -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(b"service unavailable\n"));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    answer
}
