//! Things begun by a unit of work that others may keep for longer than the work lasts.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::Meter;
use crate::memory;

/// Something that others keep, and that must release its account and its timer when the work ends.
pub(crate) trait EndsWithWork: fmt::Debug + Send + Sync {
    /// Ends it. It may have ended by itself before.
    fn end(&self);
}

#[derive(Debug, Default)]
pub(super) struct Outlived(Mutex<Vec<Weak<dyn EndsWithWork>>>);

impl Outlived {
    fn add(&self, other: Weak<dyn EndsWithWork>) {
        let mut all = self.lock();
        // Only before it would grow, so that the scan is amortised.
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
    /// Registers something to be ended when the work ends, if it still exists then.
    pub(crate) fn end_with_work(&self, other: Weak<dyn EndsWithWork>) {
        memory::aside(|| self.rare().outlived.add(other));
    }

    /// Ends everything that was registered and still exists.
    pub(super) fn end_outlived(&self) {
        let Some(rare) = self.rare.get() else { return };
        let all = mem::take(&mut *rare.outlived.lock());
        for other in all.iter().filter_map(Weak::upgrade) {
            other.end();
        }
        memory::aside(|| drop(all));
    }
}
