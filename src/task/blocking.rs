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
/// For the closure of [`tokio::task::spawn_blocking`], a thread, a program without a runtime. Memory is
/// measured as anywhere; statements and external calls are counted where the closure runs futures, with
/// [`Handle::block_on`](tokio::runtime::Handle::block_on). Inside another unit of work on this thread it
/// is charged to both.
///
/// Nothing can end a closure from outside. It ends early where it asks, with [`checkpoint`].
///
/// # Errors
///
/// `Err` when a hard limit cut the work: something was refused to it, or a [`checkpoint`] told it to stop.
/// What it returned is then dropped. Where it merely took longer than its
/// [`total_time`](Budget::total_time) without asking, the violation is reported at its end and what it
/// returned stands, as with every answer that is ready too late.
///
/// # Panics
///
/// As the closure does; the work is then reported as panicked.
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

/// The settings of one piece of synchronous work; [`blocking`] for those that need few.
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
    /// Synchronous work with a name and a budget, made where it is begun.
    pub fn new(name: impl Into<Name>, budget: Budget) -> Self {
        Self { origin: Origin::here(), name: name.into(), budget, reporter: None }
    }

    /// Tells this run from others of the same name, in all that is reported of it.
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.origin.attributes = attributes;
        self
    }

    /// Hands the violations and the usage of this work to a reporter as well.
    pub fn with_reporter(mut self, reporter: impl Reporter) -> Self {
        self.reporter = Some(Arc::new(reporter));
        self
    }

    /// Runs it on this thread. See [`blocking`].
    ///
    /// # Errors
    ///
    /// `Err` when a hard limit cut the work, as with [`blocking`].
    ///
    /// # Panics
    ///
    /// As the closure does.
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

/// Asks, between two pieces of work that does not await, whether a hard limit ends it here.
///
/// Looks at the clock, for the [`total_time`](Budget::total_time) of the work that is running here and
/// of all that it runs inside, and at the memory that this piece has used, which is otherwise looked at
/// only where a poll ends. Outside every unit of work it is always `Ok`.
///
/// # Errors
///
/// The cut that is due. Pass it on, and let go of everything: the work is over, whatever it returns, and
/// statements and external calls are refused to it.
///
/// # Performance
///
/// One reading of the clock and a few of counters; nothing is locked or allocated unless a limit is crossed.
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
