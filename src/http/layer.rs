//! The layer.

use std::sync::Arc;

use tower_layer::Layer;

use super::policy::ByRoute;
use super::reject::Reject;
use super::service::BudgetService;
use crate::report::Reporter;

/// Puts every request of a service under a budget.
///
/// See the [module docs](crate::http).
#[derive(Debug, Clone)]
pub struct BudgetLayer<P, N = ByRoute> {
    policy: P,
    naming: N,
    hooks: Hooks,
}

/// What the layer hands to every request.
#[derive(Debug, Clone, Default)]
pub(super) struct Hooks {
    pub(super) reporter: Option<Arc<dyn Reporter>>,
    pub(super) reject: Option<Arc<dyn Reject>>,
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

    /// Hands violations, and the usage of each request at its end, to a reporter as well.
    #[must_use]
    pub fn with_reporter(mut self, reporter: impl Reporter) -> Self {
        self.hooks.reporter = Some(Arc::new(reporter));
        self
    }

    /// Chooses the answer to a request that was cut.
    #[must_use]
    pub fn with_reject(mut self, reject: impl Reject) -> Self {
        self.hooks.reject = Some(Arc::new(reject));
        self
    }
}

impl<S, P: Clone, N: Clone> Layer<S> for BudgetLayer<P, N> {
    type Service = BudgetService<S, P, N>;

    fn layer(&self, inner: S) -> Self::Service {
        BudgetService::new(inner, self.policy.clone(), self.naming.clone(), self.hooks.clone())
    }
}
