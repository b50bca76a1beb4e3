//! A client whose calls are external calls.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::deadline::{External, Readiness};
use crate::error::http::{BoxError, ExternalError};

/// Makes every call of a tower client a call to an external system.
///
/// What [`external`](crate::ExternalExt::external) does for one future, for all calls of a client:
/// counted, timed, and ended by the [`external_timeout`](crate::Budget::external_timeout) of the
/// unit of work that makes them. For any `Service`: hyper-util's client, `reqwest::Client`, a stack
/// with retries.
///
/// A call begins when the service is called, unless it is refused; then the client is not called.
/// It ends when the service's future does: with HTTP clients at the headers of the response.
/// Reading the body is not part of it.
///
/// # A client that is not ready
///
/// Where the client is not ready (`poll_ready`), the call begins with the wait for it: counted,
/// timed and bounded as one. When its time is up, or where it is refused, the service is ready, and
/// fails the call with [`ExternalError::Cut`] without calling the client. The service can be used
/// again; the client keeps its place in whatever queue it waits in until this service is called
/// with success, or dropped.
///
/// A wait that is given up counts as a call, with its time. It ends when the service, or the clone
/// that was polled, is dropped, and at the latest with the unit of work. If the same service is
/// polled again before, the wait continues. Only waits in the task of the unit of work can be
/// bounded: with tower's `Buffer`, put this layer around it and not inside.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::convert::Infallible;
/// use std::time::Duration;
/// use request_budget::http::{ExternalError, ExternalLayer};
/// use request_budget::{Budget, BudgetExt};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// let payments = service_fn(|amount: u32| async move {
///     tokio::time::sleep(Duration::from_millis(amount.into())).await;
///     Ok::<_, Infallible>(amount)
/// });
/// let payments = ExternalLayer::new("payments").layer(payments);
/// let work = async {
///     assert_eq!(payments.clone().oneshot(10).await.unwrap(), 10);
///     payments.oneshot(10_000).await
/// };
/// let budget = Budget::new().external_timeout(Duration::from_millis(500));
/// let error = work.budgeted("order", budget).await.unwrap().unwrap_err();
/// assert!(matches!(error, ExternalError::Cut(_)));
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ExternalLayer {
    name: Cow<'static, str>,
}

impl ExternalLayer {
    /// A layer for a client of this system.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into() }
    }
}

impl<S> Layer<S> for ExternalLayer {
    type Service = ExternalService<S>;

    fn layer(&self, inner: S) -> ExternalService<S> {
        ExternalService { inner, name: self.name.clone(), wait: Readiness::default() }
    }
}

/// A client whose calls are external calls. See [`ExternalLayer`].
#[derive(Debug)]
pub struct ExternalService<S> {
    inner: S,
    name: Cow<'static, str>,
    wait: Readiness,
}

/// A clone does not share the wait.
impl<S: Clone> Clone for ExternalService<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), name: self.name.clone(), wait: Readiness::default() }
    }
}

impl<S> ExternalService<S> {
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

impl<S, Request> Service<Request> for ExternalService<S>
where
    S: Service<Request, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = ExternalError;
    type Future = ExternalFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => self.wait.client_is_ready(),
            Poll::Ready(Err(error)) => {
                self.wait.end();
                return Poll::Ready(Err(ExternalError::inner(error)));
            }
            Poll::Pending => ready!(self.wait.poll_wait(&self.name, cx)),
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Checked before the call: many clients send a request when they are called, not when they
        // are polled.
        let make = || self.inner.call(request);
        ExternalFuture { call: External::begun(self.name.clone(), &mut self.wait, make) }
    }
}

pin_project! {
    /// The response future of [`ExternalService`].
    pub struct ExternalFuture<F> {
        #[pin]
        call: External<F>,
    }
}

impl<F, T, E> Future for ExternalFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, ExternalError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(self.project().call.poll(cx)) {
            Ok(answer) => answer.map_err(ExternalError::inner),
            Err(cut) => Err(ExternalError::cut(cut)),
        })
    }
}

impl<F> fmt::Debug for ExternalFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExternalFuture").field(&self.call).finish()
    }
}
