//! Traits that choose the name, the budget and the attributes of a job.

use crate::budget::Budget;
use crate::report::{Attributes, Name};

/// Names jobs.
///
/// Implemented by `&'static str` and [`Name`], which are then the name of all jobs, and by closures
/// that take the job and return anything that is a [`Name`]: the kind of job, never its id.
pub trait JobNaming<R> {
    /// The name of this job.
    fn name(&self, job: &R) -> Name;
}

impl<R> JobNaming<R> for &'static str {
    fn name(&self, _: &R) -> Name {
        Name::from(*self)
    }
}

impl<R> JobNaming<R> for Name {
    fn name(&self, _: &R) -> Name {
        self.clone()
    }
}

impl<F, R, N> JobNaming<R> for F
where
    F: Fn(&R) -> N,
    N: Into<Name>,
{
    fn name(&self, job: &R) -> Name {
        self(job).into()
    }
}

/// Chooses the budget of a job.
///
/// Implemented by [`Budget`], which is then the budget of all jobs, and by closures that take the
/// job and return a budget. Budgets are cheap to clone.
///
/// # Examples
///
/// One service for several kinds of job:
///
/// ```
/// use std::time::Duration;
/// use request_budget::{Budget, TaskBudgetLayer};
///
/// enum Job {
///     Mail { to: String },
///     Report,
/// }
///
/// let name = |job: &Job| match job {
///     Job::Mail { .. } => "mail",
///     Job::Report => "report",
/// };
/// let usual = Budget::new().queries(20).total_time(Duration::from_secs(5));
/// let long = Budget::new().queries(500).total_time(Duration::from_secs(600));
/// let layer = TaskBudgetLayer::new(name, move |job: &Job| match job {
///     Job::Mail { .. } => usual.clone(),
///     Job::Report => long.clone(),
/// });
/// # let _ = layer;
/// ```
pub trait JobPolicy<R> {
    /// The budget of this job.
    fn budget(&self, job: &R) -> Budget;
}

impl<R> JobPolicy<R> for Budget {
    fn budget(&self, _: &R) -> Budget {
        self.clone()
    }
}

impl<F, R> JobPolicy<R> for F
where
    F: Fn(&R) -> Budget,
{
    fn budget(&self, job: &R) -> Budget {
        self(job)
    }
}

/// Tells one run of a job from another.
///
/// Implemented by closures that take the job and return [`Attributes`], and by `()`, which gives
/// none.
pub trait Describe<R> {
    /// The attributes of this run.
    fn attributes(&self, job: &R) -> Attributes;
}

impl<R> Describe<R> for () {
    fn attributes(&self, _: &R) -> Attributes {
        Attributes::new()
    }
}

impl<F, R> Describe<R> for F
where
    F: Fn(&R) -> Attributes,
{
    fn attributes(&self, job: &R) -> Attributes {
        self(job)
    }
}
