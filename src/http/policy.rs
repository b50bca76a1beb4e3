//! Traits that choose the budget and the name of a request.

use std::borrow::Cow;

use http::Request;

use super::grpc;
use crate::budget::Budget;
use crate::report::method::Methods;
use crate::report::{Name, Verb};

/// Chooses the budget of a request.
///
/// Implemented by [`Budget`], which is then the budget of all requests, and by closures that take
/// the request and return a budget. Budgets are cheap to clone.
///
/// # Panics
///
/// It should not panic. If it does, the panic is caught and reported by at most one event a minute,
/// and the request continues under a budget without limits.
///
/// # Examples
///
/// A budget by route, as axum matched it:
///
/// ```
/// use axum::extract::{MatchedPath, Request};
/// use request_budget::{Budget, BudgetLayer};
///
/// let usual = Budget::new().queries(20);
/// let export = Budget::new().queries(5).rows(1_000_000);
/// let layer = BudgetLayer::new(move |request: &Request| {
///     match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
///         Some("/export") => export.clone(),
///         _ => usual.clone(),
///     }
/// });
/// let app: axum::Router = axum::Router::new().layer(layer);
/// ```
pub trait Policy<B> {
    /// The budget of this request.
    fn budget(&self, request: &Request<B>) -> Budget;

    /// The same, lent where the policy has it.
    ///
    /// What is cloned for each request is one handle more, whose count all threads write to; a
    /// budget that is lent again and again is not. Calls [`budget`](Self::budget) unless
    /// implemented.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::borrow::Cow;
    /// use http::Request;
    /// use request_budget::http::Policy;
    /// use request_budget::{Budget, BudgetLayer};
    ///
    /// #[derive(Clone)]
    /// struct ByMethod { reads: Budget, writes: Budget }
    ///
    /// impl<B> Policy<B> for ByMethod {
    ///     fn budget(&self, request: &Request<B>) -> Budget {
    ///         self.lent(request).into_owned()
    ///     }
    ///
    ///     fn lent(&self, request: &Request<B>) -> Cow<'_, Budget> {
    ///         Cow::Borrowed(if request.method().is_safe() { &self.reads } else { &self.writes })
    ///     }
    /// }
    ///
    /// let (reads, writes) = (Budget::new().queries(20), Budget::new().queries(5));
    /// let policy = ByMethod { reads, writes };
    /// assert_eq!(policy.budget(&Request::new(())), Budget::new().queries(20));
    /// let layer = BudgetLayer::new(policy);
    /// # let _ = layer;
    /// ```
    fn lent(&self, request: &Request<B>) -> Cow<'_, Budget> {
        Cow::Owned(self.budget(request))
    }
}

impl<B> Policy<B> for Budget {
    fn budget(&self, _: &Request<B>) -> Budget {
        self.clone()
    }

    #[inline]
    fn lent(&self, _: &Request<B>) -> Cow<'_, Budget> {
        Cow::Borrowed(self)
    }
}

impl<F, B> Policy<B> for F
where
    F: Fn(&Request<B>) -> Budget,
{
    fn budget(&self, request: &Request<B>) -> Budget {
        self(request)
    }
}

/// Names the unit of work that a request is.
///
/// Implemented by closures that take the request and return anything that is a [`Name`]. A panic is
/// caught as that of a [`Policy`]; the request is then named [by its route](ByRoute).
pub trait Naming<B> {
    /// The name of this request. It must not be the raw path, because the number of paths is
    /// unbounded.
    fn name(&self, request: &Request<B>) -> Name;
}

impl<F, B, N> Naming<B> for F
where
    F: Fn(&Request<B>) -> N,
    N: Into<Name>,
{
    fn name(&self, request: &Request<B>) -> Name {
        self(request).into()
    }
}

/// Names a request by its method and the route that axum matched: "GET /posts/{id}".
///
/// Where there is no route (a layer around the whole router, a server without axum, a path that
/// nothing matches) the name is "GET (no route)". A method that HTTP does not define is "_OTHER".
///
/// A gRPC call (`content-type: application/grpc`) is named by its method: "/pkg.Service/Method".
/// Clients can call methods that do not exist, so the number of names is bounded: at most 32
/// methods that have not answered yet, or only with `UNIMPLEMENTED`, and at most 512 in total get a
/// name. Every other call is "_other".
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ByRoute;

impl<B> Naming<B> for ByRoute {
    #[inline]
    fn name(&self, request: &Request<B>) -> Name {
        let method = || Name::method(Methods::all().named(request.uri().path()));
        if grpc::is_call(request) {
            return method();
        }
        let verb = Verb::of(request.method());
        #[cfg(feature = "axum")]
        if let Some(path) = request.extensions().get::<axum::extract::MatchedPath>() {
            if request.method() == http::Method::POST && grpc::is_service(path.as_str()) {
                return method();
            }
            return Name::route(verb, path.clone());
        }
        Name::unmatched(verb)
    }
}
