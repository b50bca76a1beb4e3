//! Every call of a `reqwest-middleware` client as an external call, its body included.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use http::Extensions;
use http_body::Body as _;
use reqwest::{Body, Request, Response, ResponseBuilderExt};
use reqwest_middleware::{Error, Middleware, Next};

use super::called::CalledBody;
use crate::deadline::LongCall;

/// Makes every call of a [`reqwest-middleware`](reqwest_middleware) client a call to an external
/// system.
///
/// What [`external`](crate::ExternalExt::external) does for one future, for all calls of a client:
/// counted, timed, and ended by the [`external_timeout`](crate::Budget::external_timeout) of the
/// unit of work that makes them. A call ends with the body of its response, or when that is
/// dropped. A middleware that tries again counts each attempt if it is outside of this one, and all
/// attempts as one call if it is inside.
///
/// # Errors
///
/// A call that is refused or cut ends in an error in which [`Cut::find`](crate::Cut::find) finds
/// the cut: of the client, or of the body where that was cut.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use request_budget::http::ExternalMiddleware;
/// use request_budget::{Budget, BudgetExt, Cut, Limit};
/// use reqwest_middleware::ClientBuilder;
///
/// let client = ClientBuilder::new(reqwest::Client::new())
///     .with(ExternalMiddleware::new("payments"))
///     .build();
/// let work = async move {
///     let error = client.get("http://payments.invalid").send().await.unwrap_err();
///     Cut::find(&error).is_some()
/// };
/// let order = work.budgeted("order", Budget::new().external_calls(Limit::hard(0)));
/// // The work whose call was refused is cut.
/// assert!(order.await.is_err());
/// # }
/// ```
#[derive(Debug)]
pub struct ExternalMiddleware {
    name: Name,
}

#[derive(Debug)]
enum Name {
    Fixed(Cow<'static, str>),
    /// The hosts that were called so far.
    Host(Mutex<Vec<Arc<str>>>),
}

impl ExternalMiddleware {
    /// More hosts than these are one external system together.
    const MOST_HOSTS: usize = 64;
    const OTHER_HOSTS: &'static str = "(other hosts)";

    /// For a client of this system.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: Name::Fixed(name.into()) }
    }

    /// For a client of several systems, each named by its host; after the first 64 hosts all others
    /// have one name together.
    #[must_use]
    pub fn by_host() -> Self {
        Self { name: Name::Host(Mutex::default()) }
    }

    fn name(&self, request: &Request) -> Cow<'_, str> {
        let hosts = match &self.name {
            Name::Fixed(name) => return Cow::Borrowed(name),
            Name::Host(hosts) => hosts,
        };
        let host = request.url().host_str().unwrap_or_default();
        // No access panics midway, so what is poisoned is whole.
        let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.iter().any(|known| **known == *host) {
            if hosts.len() >= Self::MOST_HOSTS {
                return Cow::Borrowed(Self::OTHER_HOSTS);
            }
            hosts.push(host.into());
        }
        Cow::Owned(host.to_owned())
    }
}

#[async_trait]
impl Middleware for ExternalMiddleware {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let mut call = LongCall::begin(&self.name(&request)).await.map_err(Error::middleware)?;
        let mut answer = next.run(request, extensions);
        match poll_fn(|cx| call.poll(cx, |cx| answer.as_mut().poll(cx))).await {
            Ok(answer) => answer.map(|response| with_call(response, call)),
            Err(cut) => Err(Error::middleware(cut)),
        }
    }
}

/// The response with a body that ends the call.
fn with_call(response: Response, mut call: LongCall) -> Response {
    let url = response.url().clone();
    let (mut parts, body) = http::Response::from(response).into_parts();
    if body.is_end_stream() {
        call.end();
    }
    // The conversion back takes the address from an extension that only this builder makes.
    let built = http::response::Builder::new().url(url).body(());
    parts.extensions.extend(
        built
            .map(http::Response::into_parts)
            .map_or_else(|_| Extensions::new(), |(parts, ())| parts.extensions),
    );
    let body = Body::wrap(CalledBody::new(body, call));
    Response::from(http::Response::from_parts(parts, body))
}
