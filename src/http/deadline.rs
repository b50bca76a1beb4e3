//! Sends the deadline of the work along with the calls of HTTP clients.

use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request};
use tower_layer::Layer;
use tower_service::Service;

use super::incoming::{GRPC_TIMEOUT, TIMEOUT_MS, grpc_timeout, milliseconds, parsed};
use crate::budget::Budget;

/// Sends what is left of the [`total_time`](Budget::total_time) along with each call of an HTTP
/// client.
///
/// It is sent in the headers `grpc-timeout` and `x-request-timeout-ms`, unless the request has a
/// shorter deadline already. Outside of all units of work, or without a hard total time, nothing is
/// sent. A service with
/// [`BudgetLayer::with_incoming_deadlines`](super::BudgetLayer::with_incoming_deadlines) obeys
/// these headers.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::convert::Infallible;
/// use std::time::Duration;
/// use http::Request;
/// use request_budget::http::DeadlineLayer;
/// use request_budget::{Budget, BudgetExt};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// let client = DeadlineLayer::new().layer(service_fn(|request: Request<()>| async move {
///     Ok::<_, Infallible>(request.headers().get("x-request-timeout-ms").cloned())
/// }));
/// let work = async {
///     tokio::time::advance(Duration::from_millis(700)).await;
///     client.oneshot(Request::new(())).await.unwrap()
/// };
/// let budget = Budget::new().total_time(Duration::from_secs(1));
/// let sent = work.budgeted("order", budget).await.unwrap();
/// assert_eq!(sent.unwrap(), "300");
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DeadlineLayer;

impl DeadlineLayer {
    /// Creates the layer, which has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner }
    }
}

/// A client that sends the time left along with each call. See [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S> DeadlineService<S> {
    /// The inner client.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner client, mutably.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner client.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(left) = Budget::remaining_time() {
            let headers = request.headers_mut();
            let (grpc, plain) = values(left);
            // A proxy may pass on the header that it has received.
            if parsed(headers, &GRPC_TIMEOUT, grpc_timeout).is_none_or(|there| there > left) {
                headers.insert(GRPC_TIMEOUT, grpc);
            }
            if parsed(headers, &TIMEOUT_MS, milliseconds).is_none_or(|there| there > left) {
                headers.insert(TIMEOUT_MS, plain);
            }
        }
        self.inner.call(request)
    }
}

/// The values of both headers, rounded down, so that the callee never gets more time than is left.
fn values(left: Duration) -> (HeaderValue, HeaderValue) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let grpc = match millis {
        0..100_000_000 => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    };
    let grpc = HeaderValue::try_from(grpc).expect("digits and a letter");
    (grpc, HeaderValue::from(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_left_is_rounded_down() {
        let sent = |left| {
            let (grpc, plain) = values(left);
            (
                grpc.to_str().expect("is ASCII").to_owned(),
                plain.to_str().expect("is ASCII").to_owned(),
            )
        };
        let expected = |grpc: &str, plain: &str| (grpc.to_owned(), plain.to_owned());
        assert_eq!(sent(Duration::from_micros(1_999)), expected("1m", "1"));
        assert_eq!(sent(Duration::ZERO), expected("0m", "0"));
        assert_eq!(sent(Duration::from_secs(200_000)), expected("200000S", "200000000"));
    }
}
