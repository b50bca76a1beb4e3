//! The parts of the public API that read the unit of work which is running on this thread.

use std::time::Duration;

use super::current::{current, usage};
use crate::budget::Budget;
use crate::usage::Usage;

impl Budget {
    /// How much of the [`total_time`](Self::total_time) is left to the unit of work that is running
    /// here.
    ///
    /// `None` outside of all units of work, or if none of those that are running here has a hard
    /// limit. Zero if the time is up and the cut is due.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use std::time::Duration;
    /// use request_budget::{Budget, BudgetExt};
    ///
    /// let budget = Budget::new().total_time(Duration::from_secs(1));
    /// let left = async {
    ///     tokio::time::sleep(Duration::from_millis(300)).await;
    ///     Budget::remaining_time()
    /// };
    /// let left = left.budgeted("report", budget).await.unwrap();
    /// // the timer has a resolution of one millisecond
    /// let left = left.unwrap();
    /// assert!(left <= Duration::from_millis(700) && left > Duration::from_millis(690));
    /// assert_eq!(Budget::remaining_time(), None);
    /// # }
    /// ```
    #[must_use]
    pub fn remaining_time() -> Option<Duration> {
        current()?.remaining_time()
    }
}

impl Usage {
    /// The usage of the work that is running here, up to now; `None` outside every unit of work.
    ///
    /// A statement or an external call that is still in flight is counted, its time is not yet.
    #[must_use]
    pub fn current() -> Option<Self> {
        usage()
    }
}
