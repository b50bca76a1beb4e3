//! What recorded work waits for: who wakes it, while nothing that is counted is in flight.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(feature = "sqlx")]
use super::present::is_live;
use super::present::{Entry, Recording, Site};
use super::spawns::Whereabouts;
use crate::memory;

/// So many different wakes of a recording are kept; what wakes it again and again is one.
const MOST_WAKES: usize = 64;

/// That recorded work was woken, which had waited for nothing that is counted.
#[derive(Debug, Clone)]
pub(crate) struct Woken {
    /// Who has woken it.
    pub(crate) site: Site,
    pub(crate) from: Whereabouts,
    /// The statement in no work that the thread was busy with last, if that was for whoever has
    /// woken it.
    pub(crate) after: Option<Last>,
}

/// A statement that ran in no work.
#[derive(Debug, Clone)]
pub(crate) struct Last {
    pub(crate) entry: Arc<Entry>,
    pub(crate) task: Option<u64>,
    number: u64,
}

/// How many of them have begun or ended in this process.
static LASTS: AtomicU64 = AtomicU64::new(0);

/// The number that the next one gets.
pub(super) fn next_last() -> u64 {
    LASTS.load(Relaxed)
}

thread_local! {
    /// Something that is counted was pending here since the work began its poll.
    static IS_TOUCHED: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Notes that something that is counted is pending here.
#[cfg(feature = "sqlx")]
pub(crate) fn touch() {
    if is_live() {
        IS_TOUCHED.set(true);
    }
}

/// Notes that a statement in no work is begun, or has ended, here.
pub(super) fn note_last(entry: &Arc<Entry>) {
    memory::aside(|| {
        let number = LASTS.fetch_add(1, Relaxed);
        let last = Last { entry: entry.clone(), task: Whereabouts::here(false).task, number };
        // Fails while the thread ends, when it wakes nothing any more.
        let before = LAST.try_with(|here| here.replace(Some(last)));
        drop(before);
    });
}

impl Recording {
    /// Polls the recorded work; whether it waits, and for nothing that is counted.
    pub(crate) fn watch<T>(
        &self,
        poll: impl FnOnce() -> T,
        is_pending: fn(&T) -> bool,
    ) -> (T, bool) {
        struct Polling<'a>(&'a Recording, bool);

        impl Drop for Polling<'_> {
            fn drop(&mut self) {
                self.0.polls.fetch_sub(1, Relaxed);
                // What was polled inside was polled by what is outside as well.
                IS_TOUCHED.set(self.1 || IS_TOUCHED.get());
            }
        }

        self.polls.fetch_add(1, Relaxed);
        let polling = Polling(self, IS_TOUCHED.replace(false));
        let polled = poll();
        let is_idle = is_pending(&polled) && !IS_TOUCHED.get() && !self.has_open_entries();
        drop(polling);
        (polled, is_idle)
    }

    /// Whether the recorded work is being polled, on whatever thread.
    pub(super) fn is_polled(&self) -> bool {
        self.polls.load(Relaxed) > 0
    }

    /// Notes that the recorded work is woken here, after it had waited for nothing that is counted.
    pub(crate) fn note_wake(&self) {
        memory::aside(|| {
            let from = Whereabouts::here(false);
            let last = LAST.try_with(|last| last.borrow().clone()).ok().flatten();
            // One that has ended before the recording began says nothing. And what wakes the
            // waiters of a task is in no task any more.
            let is_meant = |last: &Last| from.task.is_none() || from.task == last.task;
            let after = last.filter(|last| last.number >= self.first_last && is_meant(last));
            let woken = Woken { site: Site::capture(), from, after };
            let mut wakes = self.lock_wakes();
            let is_known = |other: &Woken| {
                let entry = |woken: &Woken| woken.after.as_ref().map(|l| Arc::as_ptr(&l.entry));
                other.site == woken.site && entry(other) == entry(&woken)
            };
            if wakes.len() < MOST_WAKES && !wakes.iter().any(is_known) {
                wakes.push(woken);
            }
        });
    }

    pub(crate) fn wakes(&self) -> Vec<Woken> {
        self.lock_wakes().clone()
    }
}
