//! The service.

use std::borrow::Cow;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::ResponseBody;
use super::future::{Origin, ResponseFuture};
use super::layer::Hooks;
use super::policy::{ByRoute, Naming, Policy};
use super::server_timing::ServerTiming;
use crate::budget::Budget;
use crate::deadline::Detachable;
use crate::error::http::BoxError;
use crate::report::seldom::caught;
use crate::scope::Work;

/// Puts every request of the inner service under a budget.
///
/// Made by [`BudgetLayer`](super::BudgetLayer). See the [module docs](crate::http).
#[derive(Debug, Clone)]
pub struct BudgetService<S, P, N = ByRoute> {
    inner: S,
    policy: P,
    naming: N,
    hooks: Hooks,
}

impl<S, P, N> BudgetService<S, P, N> {
    pub(super) fn new(inner: S, policy: P, naming: N, hooks: Hooks) -> Self {
        Self { inner, policy, naming, hooks }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutably.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, P, N, ReqBody, ResBody> Service<Request<ReqBody>> for BudgetService<S, P, N>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Future: Detachable>,
    P: Policy<ReqBody>,
    N: Naming<ReqBody>,
    ResBody: Body<Data: From<Bytes>, Error: Into<BoxError>> + Detachable,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let (mut work, mut origin) = self.start(&request);
        if !matches!(self.hooks.server_timing, ServerTiming::None) {
            (request, origin.shows_timing) = self.hooks.server_timing.is_of(request);
        }
        let mut running = work.piece();
        running.enter();
        let future = self.inner.call(request);
        running.leave();
        running.done();
        ResponseFuture::new(future, work, self.hooks.reject.clone(), origin)
    }
}

impl<S, P, N> BudgetService<S, P, N> {
    /// Starts the unit of work of a request.
    ///
    /// A separate function, so that its temporaries are not on the stack while nested services are
    /// called.
    fn start<B>(&self, request: &Request<B>) -> (Work, Origin)
    where
        P: Policy<B>,
        N: Naming<B>,
    {
        let none = || Cow::Owned(Budget::new());
        let budget = caught("a policy", || self.policy.lent(request), none);
        let usual = || ByRoute.name(request);
        let name = caught("a naming", || self.naming.name(request), usual);
        let origin = Origin::of(request, self.hooks.reject.as_deref());
        let (budget, waited) = self.hooks.incoming.apply(budget, request.headers());
        let work = Work::start(name, budget, self.hooks.reporter.clone());
        if let (Some(waited), Some(meter)) = (waited, work.meter()) {
            meter.set_queue_time(waited);
        }
        (work, origin)
    }
}
