//! Accounts of finished work, which each thread keeps for the work that it starts next.
//!
//! An account is larger than everything else that the layer keeps per request: allocating one took
//! a fifth of the cost of a request.

use std::cell::Cell;
use std::sync::Arc;

use super::Meter;
use crate::memory;

/// The most accounts that a thread keeps: some kilobytes.
const MOST: usize = 16;

thread_local! {
    /// How many accounts there are. `None` before the first one, and while the thread ends.
    ///
    /// Not part of `ACCOUNTS`, since a thread-local without a destructor is read without a check
    /// whether it was destroyed.
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
    static ACCOUNTS: Accounts = const { Accounts([const { Cell::new(None) }; MOST]) };
}

struct Accounts([Cell<Option<Arc<Meter>>>; MOST]);

impl Drop for Accounts {
    fn drop(&mut self) {
        COUNT.set(None);
        memory::aside(|| self.0.iter().for_each(|place| drop(place.take())));
    }
}

/// Takes an account to which there is no other handle, if there is one.
#[inline]
pub(super) fn take() -> Option<Arc<Meter>> {
    let last = COUNT.get()?.checked_sub(1)?;
    COUNT.set(Some(last));
    ACCOUNTS.try_with(|accounts| accounts.0.get(last)?.take()).ok().flatten()
}

/// Keeps an account to which there is no other handle, unless there are enough.
#[inline]
pub(super) fn keep(account: Arc<Meter>) {
    match COUNT.get() {
        Some(count) if count < MOST => put(account, count),
        // The first use of a thread-local with a destructor may allocate.
        count => memory::aside(|| put(account, count.unwrap_or(0))),
    }
}

#[inline]
fn put(account: Arc<Meter>, count: usize) {
    let put = |accounts: &Accounts| {
        if let Some(place) = accounts.0.get(count) {
            place.set(Some(account));
            COUNT.set(Some(count.saturating_add(1)));
        }
    };
    // A thread that is ending keeps none.
    let _ = ACCOUNTS.try_with(put);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::thread;

    use super::*;
    use crate::budget::Budget;
    use crate::report::Name;

    fn open() -> Arc<Meter> {
        Meter::open(Name::from("work"), Cow::Owned(Budget::new()), None)
    }

    #[test]
    fn an_account_that_is_over_is_the_next_one() {
        let first = open();
        let address = Arc::as_ptr(&first);
        first.recycle();
        let next = open();
        assert_eq!(Arc::as_ptr(&next), address);
        assert_ne!(Arc::as_ptr(&open()), address, "it is taken");
    }

    #[test]
    fn an_account_that_somebody_knows_is_nobody_else_s() {
        let (held, known) = (open(), open());
        let (holder, knower) = (held.clone(), Arc::downgrade(&known));
        held.recycle();
        known.recycle();
        assert_eq!(COUNT.get(), None);
        assert_eq!(Arc::strong_count(&holder), 1);
        assert!(knower.upgrade().is_none(), "what is over is gone, for whoever asks");
    }

    #[test]
    fn a_thread_keeps_boundedly_many_and_none_when_it_ends() {
        let limits = Budget::new().queries(1);
        let count = limits.clone();
        let opened = move || {
            let open = || Meter::open(Name::from("work"), Cow::Borrowed(&limits), None);
            let all: Vec<_> = (0..MOST + 5).map(|_| open()).collect();
            all.into_iter().for_each(Meter::recycle);
            COUNT.get()
        };
        assert_eq!(thread::spawn(opened).join().expect("it does not panic"), Some(MOST));
        assert!(!count.is_shared(), "they are dropped with the thread");
    }
}
