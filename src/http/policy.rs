//! Which budget and which name a request gets.

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
/// It should not panic. If it does, the panic is caught, said in an event once in a while, and the request
/// goes on under a budget without limits.
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
}

impl<B> Policy<B> for Budget {
    fn budget(&self, _: &Request<B>) -> Budget {
        self.clone()
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
/// Implemented by closures that take the request and return anything that is a [`Name`]. A panic is caught as
/// that of a [`Policy`] is; the request is then named [by its route](ByRoute).
pub trait Naming<B> {
    /// The name of this request. Never the raw path: there is no end to these.
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
/// A gRPC call (`content-type: application/grpc`) is named by its method: "/pkg.Service/Method". Clients
/// can ask for methods that do not exist: at most 32 names are given to what has not answered yet, or only
/// with `UNIMPLEMENTED`, and at most 512 in all; every other call is "_other".
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
