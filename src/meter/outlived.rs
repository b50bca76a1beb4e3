//! What may be kept for longer than the unit of work that began it.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::Meter;
use crate::memory;

/// What others keep, and what is over when the work is: it must hold neither its account nor a timer any longer.
pub(crate) trait EndsWithWork: fmt::Debug + Send + Sync {
    /// Ends it. It may have ended by itself before.
    fn end(&self);
}

#[derive(Debug, Default)]
pub(super) struct Outlived(Mutex<Vec<Weak<dyn EndsWithWork>>>);

impl Outlived {
    fn add(&self, other: Weak<dyn EndsWithWork>) {
        let mut all = self.lock();
        // Before it would grow: so looking through it costs little for each.
        if all.len() == all.capacity() {
            all.retain(|other| other.strong_count() > 0);
        }
        all.push(other);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn EndsWithWork>>> {
        // Nothing panics midway, so a poisoned list is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    /// Has this ended when the work is over, if somebody still keeps it then.
    pub(crate) fn end_with_work(&self, other: Weak<dyn EndsWithWork>) {
        memory::aside(|| self.rare().outlived.add(other));
    }

    /// Ends what would outlive the work.
    pub(super) fn end_outlived(&self) {
        let Some(rare) = self.rare.get() else { return };
        let all = mem::take(&mut *rare.outlived.lock());
        for other in all.iter().filter_map(Weak::upgrade) {
            other.end();
        }
        memory::aside(|| drop(all));
    }
}
