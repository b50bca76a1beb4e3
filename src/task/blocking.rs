//! Synchronous work.

use std::fmt;
use std::sync::Arc;

use crate::budget::Budget;
use crate::error::Cut;
use crate::meter::Origin;
use crate::report::unmeasured::check_task;
use crate::report::{Attributes, Name, Outcome, Reporter};
use crate::scope::{self, Work};

/// Runs synchronous work on this thread as a unit of work of its own, with a name and a budget.
///
/// Use it for the closure of [`tokio::task::spawn_blocking`], for a thread, or in a program without
/// a runtime. Memory is measured as elsewhere; statements and external calls are counted if the
/// closure runs futures, with [`Handle::block_on`](tokio::runtime::Handle::block_on). Inside
/// another unit of work on this thread it is charged to both.
///
/// A closure cannot be ended from outside. It ends early if it calls [`checkpoint`] and returns the
/// error.
///
/// # Errors
///
/// `Err` if a hard limit cut the work: a statement or call was refused, or a [`checkpoint`] failed.
/// The value that the closure returned is then dropped. If it only took longer than its
/// [`total_time`](Budget::total_time) without a checkpoint, the violation is reported at its end
/// and the value is returned, like every answer that is ready too late.
///
/// # Panics
///
/// If the closure panics; the work is then reported as panicked.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use request_budget::{Budget, task};
///
/// let nightly = Budget::new().total_time(Duration::from_secs(60)).memory(64 << 20);
/// let sum = tokio::task::spawn_blocking(|| task::blocking("add_up", nightly, || (1..=10).sum()));
/// assert_eq!(sum.await.unwrap(), Ok(55));
/// # }
/// ```
pub fn blocking<T>(
    name: impl Into<Name>,
    budget: Budget,
    work: impl FnOnce() -> T,
) -> Result<T, Cut> {
    Blocking::new(name, budget).run(work)
}

/// Settings of synchronous work; [`blocking`] is shorter if a name and a budget are enough.
///
/// # Examples
///
/// ```
/// use request_budget::report::Attributes;
/// use request_budget::{Budget, Violation, task::Blocking};
///
/// let done = Blocking::new("resize", Budget::new().allocated(1 << 20))
///     .with_attributes(Attributes::new().with("image", 7))
///     .with_reporter(|violation: &Violation| eprintln!("{violation}"))
///     .run(|| "done");
/// assert_eq!(done, Ok("done"));
/// ```
#[must_use = "it does nothing until it is run"]
pub struct Blocking {
    origin: Origin,
    name: Name,
    budget: Budget,
    reporter: Option<Arc<dyn Reporter>>,
}

impl Blocking {
    /// Creates synchronous work with a name and a budget.
    pub fn new(name: impl Into<Name>, budget: Budget) -> Self {
        Self {
            origin: Origin::inside(scope::current().as_deref()),
            name: name.into(),
            budget,
            reporter: None,
        }
    }

    /// Adds attributes to everything that is reported about this run, which tell it from others of
    /// the same name.
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.origin.attributes = attributes;
        self
    }

    /// Passes the violations and the usage of this work to a reporter as well.
    pub fn with_reporter(mut self, reporter: impl Reporter) -> Self {
        self.reporter = Some(Arc::new(reporter));
        self
    }

    /// Runs it on this thread. See [`blocking`].
    ///
    /// # Errors
    ///
    /// `Err` if a hard limit cut the work, as with [`blocking`].
    ///
    /// # Panics
    ///
    /// If the closure panics.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> Result<T, Cut> {
        let Self { origin, name, budget, reporter } = self;
        check_task(budget.limits());
        let mut unit = Work::start_from(origin, name, budget, reporter);
        let output = unit.run(work);
        let Some(cut) = unit.cut(true) else {
            unit.finish(Outcome::Ok);
            return Ok(output);
        };
        // Made without what was refused; it belongs to the work.
        unit.run(|| drop(output));
        unit.finish(Outcome::Cut);
        Err(cut)
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Checks, in work that does not await, whether a hard limit has been crossed.
///
/// Checks the clock against the [`total_time`](Budget::total_time) of the work that is running here
/// and of all work that encloses it, and the memory that was used since the current poll began,
/// which is otherwise checked only at the end of a poll. Outside of all units of work it always
/// returns `Ok`.
///
/// # Errors
///
/// The cut that is due. Return it: the work is over whatever it returns, and its statements and
/// external calls are refused from now on.
///
/// # Performance
///
/// One reading of the clock and a few of counters; nothing is locked or allocated unless a limit is
/// crossed.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use request_budget::{Budget, Resource, task};
///
/// let budget = Budget::new().total_time(Duration::ZERO);
/// let cut = task::blocking("index", budget, || -> Result<(), request_budget::Cut> {
///     for _page in 0.. {
///         task::checkpoint()?;
///     }
///     Ok(())
/// });
/// assert_eq!(cut.unwrap_err().violation().resource, Resource::TotalTime);
/// ```
pub fn checkpoint() -> Result<(), Cut> {
    scope::checkpoint()
}
