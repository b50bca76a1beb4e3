//! The layer.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tower_layer::Layer;

use super::incoming::{Incoming, QueueTime};
use super::policy::ByRoute;
use super::reject::{ByRequest, Reject};
use super::server_timing::ServerTiming;
use super::service::BudgetService;
use crate::report::Reporter;
use crate::violation::Violation;

/// Puts every request of a service under a budget.
///
/// See the [module docs](crate::http).
#[derive(Debug, Clone)]
pub struct BudgetLayer<P, N = ByRoute> {
    policy: P,
    naming: N,
    hooks: Hooks,
}

/// What every request gets from the layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Hooks {
    pub(super) reporter: Option<Arc<dyn Reporter>>,
    pub(super) reject: Option<Arc<dyn Reject>>,
    pub(super) incoming: Incoming,
    pub(super) server_timing: ServerTiming,
}

impl<P> BudgetLayer<P> {
    /// A layer with one [`Budget`](crate::Budget) for all requests, or with a
    /// [`Policy`](super::Policy), such as a closure, that chooses one for each.
    #[must_use]
    pub fn new(policy: P) -> Self {
        Self { policy, naming: ByRoute, hooks: Hooks::default() }
    }
}

impl<P, N> BudgetLayer<P, N> {
    /// Names requests by something else than their route.
    ///
    /// # Examples
    ///
    /// ```
    /// use request_budget::{Budget, BudgetLayer};
    ///
    /// let layer = BudgetLayer::new(Budget::new()).with_names(|_: &http::Request<()>| "rpc");
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn with_names<M>(self, naming: M) -> BudgetLayer<P, M> {
        BudgetLayer { policy: self.policy, naming, hooks: self.hooks }
    }

    /// Also passes violations, and the usage of each request at its end, to a reporter.
    #[must_use]
    pub fn with_reporter(mut self, reporter: impl Reporter) -> Self {
        self.hooks.reporter = Some(Arc::new(reporter));
        self
    }

    /// Lets callers shorten the [`total_time`](crate::Budget::total_time) of their requests, by the
    /// headers [`grpc-timeout`](super::GRPC_TIMEOUT) and
    /// [`x-request-timeout-ms`](super::TIMEOUT_MS).
    ///
    /// They can only shorten it; where there is no limit theirs is the limit. A request that is cut
    /// at the deadline of its caller is no fault of the service: the violation is of
    /// [`Severity::Caller`](crate::Severity::Caller), and its event at DEBUG. A value that makes no
    /// sense is ignored, with an event at DEBUG once in a while.
    #[must_use]
    pub fn with_incoming_deadlines(mut self) -> Self {
        self.hooks.incoming.honours_deadline = true;
        self
    }

    /// Measures how long requests waited before they got here, by the headers
    /// [`x-request-start`](super::REQUEST_START) and [`x-queue-start`](super::QUEUE_START) of a
    /// proxy in front, and charges it if so asked.
    ///
    /// Of several times, in several headers or a joined one, the earliest counts. One in the future
    /// is now; what is more than a day away, or no time at all, is ignored, with an event at DEBUG
    /// once in a while. Only as true as the clocks of the two machines agree: trust it where you
    /// run both.
    #[must_use]
    pub fn with_queue_time(mut self, queue_time: QueueTime) -> Self {
        self.hooks.incoming.queue_time = queue_time;
        self
    }

    /// Adds the header `Server-Timing` to each response: what the request has used up to its
    /// headers.
    ///
    /// Browsers show it beside the request (in Chromium's developer tools, under Timing), and
    /// scripts read it from `performance.getEntriesByType("navigation")[0].serverTiming`; from
    /// another origin only with a header `Timing-Allow-Origin`. Times are in milliseconds:
    ///
    /// | name | what |
    /// |---|---|
    /// | `queue` | how long the request waited before, with [`with_queue_time`](Self::with_queue_time) |
    /// | `db` | [`query_time`](crate::Usage::query_time), with the number of queries |
    /// | `cache` | [`cache_time`](crate::Usage::cache_time), with the number of calls |
    /// | `ext` | [`external_time`](crate::Usage::external_time), with the number of calls |
    /// | `busy` | [`busy_time`](crate::Usage::busy_time), with a limit on [`poll_time`](crate::Budget::poll_time) |
    /// | `total` | from the call of the service to the headers of the response |
    ///
    /// What was not used is left out, and what the body of the response does is not known yet. A
    /// header that the service has set is kept: there are two then, which the standard allows.
    /// Whoever sees the response sees the figures:
    /// [`with_server_timing_of`](Self::with_server_timing_of) keeps them from strangers.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use std::time::Duration;
    /// use axum::{Router, body::Body, http::Request, routing::get};
    /// use request_budget::{Budget, BudgetLayer, ExternalExt};
    /// use tower::ServiceExt;
    ///
    /// let quote = || async {
    ///     tokio::time::sleep(Duration::from_millis(250)).external("payments").await.unwrap();
    /// };
    /// let layer = BudgetLayer::new(Budget::new()).with_server_timing();
    /// let app = Router::new().route("/quote", get(quote)).layer(layer);
    /// let request = Request::get("/quote").body(Body::empty()).unwrap();
    /// let response = app.oneshot(request).await.unwrap();
    /// let timing = "ext;desc=\"1 call\";dur=250.000, total;dur=250.000";
    /// assert_eq!(response.headers()["server-timing"], timing);
    /// # }
    /// ```
    #[must_use]
    pub fn with_server_timing(mut self) -> Self {
        self.hooks.server_timing = ServerTiming::All;
        self
    }

    /// As [`with_server_timing`](Self::with_server_timing), for the requests that this chooses.
    ///
    /// It is called before the service is. A panic in it is caught and reported by an event once in
    /// a while, and the response has no such header.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::request::Parts;
    /// use request_budget::{Budget, BudgetLayer};
    ///
    /// let is_internal = |request: &Parts| request.headers.contains_key("x-internal");
    /// let layer = BudgetLayer::new(Budget::new()).with_server_timing_of(is_internal);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn with_server_timing_of<F>(mut self, is_meant: F) -> Self
    where
        F: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.hooks.server_timing = ServerTiming::Of(Arc::new(is_meant));
        self
    }

    /// Chooses the response to a request that was cut.
    #[must_use]
    pub fn with_reject(mut self, reject: impl Reject) -> Self {
        self.hooks.reject = Some(Arc::new(reject));
        self
    }

    /// As [`with_reject`](Self::with_reject), with the head of the request, which is copied for it:
    /// this costs something on each request.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Response, request::Parts};
    /// use request_budget::{Budget, BudgetLayer, Violation};
    ///
    /// let layer = BudgetLayer::new(Budget::new()).with_reject_by(|_: &Violation, request: &Parts| {
    ///     let is_api = request.uri.path().starts_with("/api/");
    ///     Response::new(Bytes::from(if is_api { "{}" } else { "<p>Try again later.</p>" }))
    /// });
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn with_reject_by<F>(self, reject: F) -> Self
    where
        F: Fn(&Violation, &Parts) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.with_reject(ByRequest(reject))
    }
}

impl<S, P: Clone, N: Clone> Layer<S> for BudgetLayer<P, N> {
    type Service = BudgetService<S, P, N>;

    fn layer(&self, inner: S) -> Self::Service {
        BudgetService::new(inner, self.policy.clone(), self.naming.clone(), self.hooks.clone())
    }
}
