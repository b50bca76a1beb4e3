//! The few public errors; each carries its violation.

use std::fmt;

use crate::resource::Resource;
use crate::violation::Violation;

/// The error of work that a hard limit ended: a budgeted task, or a call to an external system.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::time::Duration;
/// use request_budget::{Budget, BudgetExt, Resource};
///
/// let endless = std::future::pending::<()>();
/// let cut = endless
///     .budgeted("send_invoices", Budget::new().total_time(Duration::from_secs(1)))
///     .await
///     .unwrap_err();
/// assert_eq!(cut.violation().resource, Resource::TotalTime);
/// assert_eq!(cut.to_string(), "send_invoices was cut: 1s in total, limit 1s");
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", Message(.violation))]
pub struct Cut {
    violation: Box<Violation>,
}

impl Cut {
    pub(crate) fn new(violation: Violation) -> Self {
        Self { violation: Box::new(violation) }
    }

    /// The limit that was crossed, and by how much.
    #[must_use]
    pub fn violation(&self) -> &Violation {
        &self.violation
    }

    /// Takes the violation out.
    #[must_use]
    pub fn into_violation(self) -> Violation {
        *self.violation
    }
}

struct Message<'a>(&'a Violation);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { resource, limit, observed, .. } = self.0;
        let phrase = resource.phrase(observed.is_one());
        let part = if *resource == Resource::ExternalTimeout { "a call of " } else { "" };
        write!(f, "{part}{} was cut: {observed} {phrase}, limit {limit}", self.0.title())?;
        match &self.0.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}
