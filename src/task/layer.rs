//! A budget for every job of a tower service.

use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::policy::{Describe, JobNaming, JobPolicy};
use super::{Budgeted, TryBudgeted};
use crate::budget::Budget;
use crate::error::Cut;
use crate::meter::Origin;
use crate::report::seldom::caught;
use crate::report::unmeasured::check_task;
use crate::report::{Attributes, Name, Reporter};
use crate::scope::{self, Work};

/// Puts every job of a runner that is built on tower under a budget.
///
/// It is generic over the request type, which is the job. The name and the budget are each either
/// the same for all jobs, or a closure that takes the job.
///
/// The unit of work is one call of the service, from the call to the end of its future. Each
/// attempt of a job that is retried is a unit of its own, unless this layer is put around the
/// retries.
///
/// # Errors
///
/// A job that was cut fails with [`Cut`], converted into the service's error type, which has to be
/// `From<Cut>` (boxed errors are). So it is retried, or not, like any job that failed.
///
/// # Examples
///
/// With [apalis](https://docs.rs/apalis) put the layer directly around the handler, inside of the
/// layers that apalis adds: then a job that is cut is stored as failed, and retried as any other.
/// Passed to `WorkerBuilder::layer`, it is outside of them: a job that is cut is retried by a retry
/// layer further out, but the state that is stored in the end is "running". The same happens with
/// every layer there that drops a job, such as a timeout. A layer that catches the panics of jobs,
/// and fails them, goes directly around this layer for the same reason; the panic is reported here
/// before.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::time::Duration;
/// use apalis::prelude::*;
/// use request_budget::report::Attributes;
/// use request_budget::{Budget, TaskBudgetLayer};
/// use tower::{Layer, Service};
///
/// async fn send_invoice(order: u32) -> Result<(), BoxDynError> {
///     Ok(std::future::pending().await)
/// }
///
/// let budget = Budget::new().total_time(Duration::from_secs(60));
/// let jobs = TaskBudgetLayer::new("send_invoice", budget)
///     .with_attributes(|job: &Task<u32>| {
///         let id = job.task_id().map(ToString::to_string).unwrap_or_default();
///         Attributes::new().with("job", id).with("attempt", job.attempt() + 1)
///     });
/// let mut handler = jobs.layer(task_fn(send_invoice));
/// // WorkerBuilder::new("invoices").backend(storage).build(handler)
///
/// let job = TaskBuilder::new(7).task_id(TaskId::from_int(41)).build();
/// let error = handler.call(job).await.unwrap_err();
/// let message = "send_invoice (job=41 attempt=1) was cut: ";
/// assert!(error.to_string().starts_with(message), "{error}");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TaskBudgetLayer<N, P, A = ()> {
    naming: N,
    policy: P,
    attributes: A,
    reporter: Option<Arc<dyn Reporter>>,
}

impl<N, P> TaskBudgetLayer<N, P> {
    /// A layer with a name and a budget for all jobs, or with closures that choose them for each
    /// job.
    ///
    /// See [`JobNaming`] and [`JobPolicy`] for what they can be.
    #[must_use]
    pub fn new(naming: N, policy: P) -> Self {
        Self { naming, policy, attributes: (), reporter: None }
    }
}

impl<N, P, A> TaskBudgetLayer<N, P, A> {
    /// Adds attributes, such as the id and the attempt of the job, which tell one run from another.
    #[must_use]
    pub fn with_attributes<D>(self, attributes: D) -> TaskBudgetLayer<N, P, D> {
        let Self { naming, policy, reporter, .. } = self;
        TaskBudgetLayer { naming, policy, attributes, reporter }
    }

    /// Passes violations, and the usage of each job at its end, to a reporter as well.
    #[must_use]
    pub fn with_reporter(mut self, reporter: impl Reporter) -> Self {
        self.reporter = Some(Arc::new(reporter));
        self
    }
}

impl<S, N: Clone, P: Clone, A: Clone> Layer<S> for TaskBudgetLayer<N, P, A> {
    type Service = TaskBudgetService<S, N, P, A>;

    fn layer(&self, inner: S) -> Self::Service {
        TaskBudgetService { inner, layer: self.clone() }
    }
}

/// Puts every job of the inner service under a budget.
///
/// Created by [`TaskBudgetLayer`].
#[derive(Debug, Clone)]
pub struct TaskBudgetService<S, N, P, A = ()> {
    inner: S,
    layer: TaskBudgetLayer<N, P, A>,
}

impl<S, N, P, A> TaskBudgetService<S, N, P, A> {
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

impl<S, N, P, A, R> Service<R> for TaskBudgetService<S, N, P, A>
where
    S: Service<R>,
    S::Error: From<Cut>,
    N: JobNaming<R>,
    P: JobPolicy<R>,
    A: Describe<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TryBudgeted<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, job: R) -> Self::Future {
        let mut work = self.start(&job);
        let future = work.run(|| self.inner.call(job));
        TryBudgeted::new(Budgeted::started(future, work))
    }
}

impl<S, N, P, A> TaskBudgetService<S, N, P, A> {
    /// Starts the work that the job is.
    ///
    /// Apart from the call, whose stack lies below that of all services inside.
    fn start<R>(&self, job: &R) -> Work
    where
        N: JobNaming<R>,
        P: JobPolicy<R>,
        A: Describe<R>,
    {
        let TaskBudgetLayer { naming, policy, attributes, reporter } = &self.layer;
        let attributes = || attributes.attributes(job);
        let attributes = caught("what describes a job", attributes, Attributes::new);
        let origin = Origin { attributes, ..Origin::inside(scope::current().as_deref()) };
        let name = caught("a job's naming", || naming.name(job), || Name::from("_other"));
        let budget = caught("a job's policy", || policy.budget(job), Budget::new);
        check_task(budget.limits());
        Work::start_from(origin, name, budget, reporter.clone())
    }
}
