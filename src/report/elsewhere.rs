//! Limits on statements of work whose statements run in no unit of work.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use tracing::{Level, event};

use super::Name;
use super::fields::{HEALTH, RESOURCE, WORK};
use super::unmeasured::STATEMENTS;
use crate::budget::Limits;
use crate::memory;

/// Statements executed where no unit of work was running.
static UNATTRIBUTED: AtomicU64 = AtomicU64::new(0);

/// The number of the newest task that has executed any of them.
static NEWEST_TASK: AtomicU64 = AtomicU64::new(0);

/// How many statements have been executed where no unit of work was running.
pub(crate) fn unattributed() -> u64 {
    UNATTRIBUTED.load(Relaxed)
}

/// Counts a statement that is executed here, where no unit of work is running.
pub(crate) fn note_unattributed() {
    count_unattributed();
    note_task();
}

/// Counts a statement for which no unit of work is running, and nothing else: its task may be one
/// of the driver.
pub(crate) fn count_unattributed() {
    UNATTRIBUTED.fetch_add(1, Relaxed);
}

/// Notes that this task has executed a statement for which no unit of work is running.
pub(crate) fn note_task() {
    let task = current_task();
    // Read first: a store would take the line from every thread on which work begins or ends.
    if task > NEWEST_TASK.load(Relaxed) {
        NEWEST_TASK.fetch_max(task, Relaxed);
    }
}

/// The tasks that had executed statements in no unit of work when one began: those of others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strangers {
    newest: u64,
}

impl Strangers {
    #[inline]
    pub(crate) fn now() -> Self {
        Self { newest: NEWEST_TASK.load(Relaxed) }
    }

    /// Checks, when a unit of work that has executed no statement ends in its task, whether one
    /// that it has spawned may have executed them instead; says so, once a name.
    ///
    /// tokio does not reveal who spawned a task, but it numbers all tasks in the order in which
    /// they are spawned. One that is newer than all of others, and than the task of the work, may
    /// be the work's own.
    #[inline]
    pub(crate) fn check(self, limits: &Limits, name: &Name) {
        if NEWEST_TASK.load(Relaxed) > self.newest {
            self.check_newer(limits, name);
        }
    }

    #[cold]
    fn check_newer(self, limits: &Limits, name: &Name) {
        let limited = || STATEMENTS.iter().filter(|resource| limits.names(**resource));
        let is_own = NEWEST_TASK.load(Relaxed) <= current_task();
        if is_own || limited().next().is_none() {
            return;
        }
        memory::aside(|| {
            if is_first_of(name) {
                let names = limited().map(|resource| resource.name()).collect::<Vec<_>>();
                say(&names.join(", "), name);
            }
        });
    }
}

fn say(names: &str, work: &Name) {
    event!(
        target: HEALTH,
        Level::WARN,
        { RESOURCE } = names,
        { WORK } = %work,
        "a budget limits {names}, but the work executed no statement itself, while a task that was \
         spawned meanwhile executed some in no unit of work: if they are part of it, these limits \
         never see them; carry the task along, `request_budget::task::spawn` or \
         `.in_current_budget()`",
    );
}

/// Whether no event was emitted for this name yet.
fn is_first_of(name: &Name) -> bool {
    /// Names are meant to be few; beyond this number no further event is emitted.
    const MOST: usize = 100;
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

    // No access panics midway, so a poisoned set is whole.
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.len() < MOST && said.insert(name.to_string())
}

/// The number of the task that runs here; 0 outside of any.
fn current_task() -> u64 {
    /// Reads the number as it is displayed, the one way to it, without allocating.
    struct Number(u64);

    impl Write for Number {
        fn write_str(&mut self, digits: &str) -> fmt::Result {
            for digit in digits.bytes() {
                let digit = u64::from(digit.wrapping_sub(b'0'));
                self.0 = self.0.wrapping_mul(10).wrapping_add(digit);
            }
            Ok(())
        }
    }

    let mut number = Number(0);
    if let Some(id) = tokio::task::try_id() {
        // It does not fail.
        let _ = write!(number, "{id}");
    }
    number.0
}

#[cfg(test)]
mod tests {
    use super::current_task;

    #[tokio::test]
    async fn tasks_are_numbered_in_the_order_in_which_they_are_spawned() {
        assert_eq!(current_task(), 0);
        let one = tokio::spawn(async { (current_task(), tokio::task::id().to_string()) });
        let (one, displayed) = one.await.unwrap();
        assert_eq!(one.to_string(), displayed);
        let other = tokio::spawn(async { current_task() }).await.unwrap();
        assert!(other > one && one > 0, "{one}, {other}");
    }
}
