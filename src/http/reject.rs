//! The answer to a request that was cut before its own answer was there.

use std::fmt;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use crate::violation::Violation;

/// Makes the answer to a request that a hard limit cut.
///
/// Implemented by closures. Without one the answer is `503 Service Unavailable` and says nothing of
/// the reason; a violation can name statements, so think before you send it out.
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
    /// The answer to work that this violation ended.
    fn reject(&self, violation: &Violation) -> Response<Bytes>;
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

/// The answer where the user chose none.
pub(super) fn unavailable() -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(b"service unavailable\n"));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    answer
}
