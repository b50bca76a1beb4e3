//! The few public errors; each carries its violation.

#[cfg(feature = "http")]
pub(crate) mod http;

use std::error::Error;
use std::iter::successors;
use std::sync::Arc;
use std::{fmt, io};

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
/// assert_eq!(cut.to_string(), "send_invoices was cut: 1s in total, limit 1s: own code");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cut {
    violation: Box<Violation>,
    /// What it means to the protocol that it meets.
    meaning: Option<Arc<dyn Error + Send + Sync>>,
}

impl Cut {
    pub(crate) fn new(violation: Violation) -> Self {
        Self { violation: Box::new(violation), meaning: None }
    }

    /// Finds the cut in an error, however deep: the error itself, or one in the chain of its
    /// sources.
    ///
    /// Looks through what carries it: a [`sqlx::Error`](https://docs.rs/sqlx) of a statement that
    /// was refused, an [`io::Error`] (whose [`source`](Error::source) skips the error that it
    /// holds), `anyhow::Error`, `tonic::Status`, and the errors of this crate.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use std::io;
    /// use std::time::Duration;
    /// use request_budget::{Budget, BudgetExt, Cut};
    ///
    /// let budget = Budget::new().total_time(Duration::from_secs(1));
    /// let cut = std::future::pending::<()>().budgeted("order", budget).await.unwrap_err();
    /// let error = io::Error::other(cut);
    /// assert_eq!(Cut::find(&error).unwrap().violation().work, "order");
    /// assert!(Cut::find(&io::Error::other("the disk is full")).is_none());
    /// # }
    /// ```
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        fn next<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            let error = *error;
            held(error).or_else(|| error.source())
        }
        successors(Some(error), next).find_map(|error| error.downcast_ref::<Self>())
    }

    /// The same, with a source that a protocol searches in the chain of an error.
    #[cfg(feature = "http")]
    pub(crate) fn meaning(self, meaning: Arc<dyn Error + Send + Sync>) -> Self {
        Self { meaning: Some(meaning), ..self }
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

/// The violation is all that is compared.
impl PartialEq for Cut {
    fn eq(&self, other: &Self) -> bool {
        self.violation == other.violation
    }
}

impl Error for Cut {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // What is in the `Arc` is looked for, not the `Arc`, which is an error as well.
        self.meaning.as_deref().map(|meaning| meaning as &(dyn Error + 'static))
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { resource, limit, observed, .. } = &*self.violation;
        let phrase = resource.phrase(observed.is_one());
        let part = if *resource == Resource::ExternalTimeout { "a call of " } else { "" };
        write!(f, "{part}{} was cut: {observed} {phrase}, limit {limit}", self.violation.title())?;
        match &self.violation.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

/// What an error holds that its sources may leave out.
fn held<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    }
    // An error in an `Arc` is one by itself, and the source of the inner one its own.
    if let Some(error) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        return Some(&**error);
    }
    #[cfg(feature = "http")]
    return http::held(error);
    #[cfg(not(feature = "http"))]
    None
}
