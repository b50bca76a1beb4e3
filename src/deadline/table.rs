//! The deadlines of one thread, behind one timer of the runtime.
//!
//! Setting a tokio timer takes a lock of the whole runtime, as does dropping it, and threads
//! contend for it. That costs more than everything else this crate does for a request, and most
//! requests end long before their deadline. So each thread keeps its deadlines in a table of its
//! own, and one task of its runtime, the [`Bell`], with one timer wakes the tasks of all of them.
//!
//! The timer stays set when its deadline is removed, since the next request would set it again; if
//! it fires without need, it is not set again. While tokio's clock is paused it is removed at once:
//! otherwise the idle runtime of a test would advance the clock to the deadline of a request that
//! has ended.

use std::cell::RefCell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{self, Handle};

use crate::memory;
use crate::meter::recording::for_library;
use crate::time::{Instant, Sleep, is_paused, nanos, sleep_until};

/// The least time, in nanoseconds, between two scans of a table. Deadlines that pass in between are
/// handled together, at most so much later. Bounds the cost of the scans.
const TICK: u64 = 5_000_000;

/// A time that never comes.
const NEVER: u64 = u64::MAX;

thread_local! {
    static HERE: RefCell<Option<Owned>> = const { RefCell::new(None) };
}

/// A deadline in a table, which wakes a task when it passes. Removed on drop.
#[derive(Debug)]
pub(super) struct Alarm {
    table: Arc<Table>,
    place: usize,
    /// In nanoseconds after the `base` of the table.
    at: u64,
    wakes: Identity,
}

/// Identifies a waker without cloning it. As long as the table keeps that waker, no other one has
/// the same identity.
#[derive(Debug)]
struct Identity {
    data: usize,
    /// The vtable of the waker in the `Context`. The compiler may emit several copies of one
    /// vtable, so a waker and its clone can differ in it: with tokio's `block_on` they do in
    /// release builds.
    lent_vtable: usize,
    vtable: usize,
}

impl Identity {
    /// The identity of the clone, and of the waker in the `Context` if both have the same data. An
    /// executor may pass a waker whose data is on its stack, and belongs to another task at the
    /// next poll.
    fn new(lent: &Waker, clone: &Waker) -> Self {
        let vtable = vtable(clone);
        let is_same = lent.data() == clone.data();
        let lent_vtable = if is_same { self::vtable(lent) } else { vtable };
        Self { data: clone.data().addr(), lent_vtable, vtable }
    }

    #[inline]
    fn is_of(&self, waker: &Waker) -> bool {
        let vtable = vtable(waker);
        self.data == waker.data().addr() && (self.lent_vtable == vtable || self.vtable == vtable)
    }
}

#[inline]
fn vtable(waker: &Waker) -> usize {
    ptr::from_ref(waker.vtable()).addr()
}

impl Alarm {
    /// Adds a deadline to the table of this thread. `None` if no runtime with timers is running
    /// here.
    pub(super) fn set(at: Instant, now: Instant, waker: &Waker) -> Option<Self> {
        let handle = Handle::try_current().ok()?;
        HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            if here
                .as_ref()
                .is_none_or(|here| here.runtime != handle.id() || here.table.is_closed())
            {
                // This also drops the table before, that of another runtime.
                memory::aside(|| *here = Owned::new(&handle));
            }
            let table = here.as_ref().filter(|here| here.has_timers)?.table.clone();
            // `add` wakes tasks, and waking may set another deadline at once.
            drop(here);
            let (at, now) = (table.time_of(at), table.time_of(now));
            // The clone that the table keeps may have another identity than the waker that was
            // passed.
            let clone = waker.clone();
            let wakes = Identity::new(waker, &clone);
            let place = table.add(at, now, clone);
            Some(Self { table, place, at, wakes })
        })
        .ok()
        .flatten()
    }

    /// Whether it has not fired yet, and would wake the task of this waker.
    #[inline]
    pub(super) fn is_waiting_for(&self, waker: &Waker) -> bool {
        self.at > self.table.rung.load(Relaxed) && self.wakes.is_of(waker)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.table.remove(self.place);
    }
}

/// The table of a thread, for the runtime that last set a deadline on it.
struct Owned {
    runtime: runtime::Id,
    table: Arc<Table>,
    /// Determined once, since tokio panics if not, and the panic hook prints even though that is
    /// caught.
    has_timers: bool,
}

impl Owned {
    /// A new table with a new [`Bell`]; `None` if the runtime is being shut down.
    fn new(handle: &Handle) -> Option<Self> {
        let base = Instant::now();
        // A runtime cannot be asked whether it has timers.
        let sleep = catch_unwind(AssertUnwindSafe(|| sleep_until(base))).ok();
        let has_timers = sleep.is_some();
        let sleep = Box::pin(sleep);
        let table =
            Arc::new(Table { base, rung: AtomicU64::new(0), state: Mutex::new(State::new()) });
        let bell = Bell { table: table.clone(), sleep, has_timers };
        drop(for_library(|| handle.spawn(bell)));
        // Closed already if the runtime is being shut down.
        (!table.is_closed()).then(|| Self { runtime: handle.id(), table, has_timers })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let bell = {
            let mut state = self.table.lock();
            state.is_orphan = true;
            state.bell.take()
        };
        bell.into_iter().for_each(Waker::wake);
    }
}

#[derive(Debug)]
struct Table {
    base: Instant,
    /// Deadlines up to here have fired, in nanoseconds after `base`; `NEVER` once the table is
    /// closed.
    rung: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    deadlines: Vec<Deadline>,
    /// Free positions in `deadlines`.
    free: Vec<usize>,
    /// When the bell scans the table next, if `bell` is set.
    next: u64,
    /// Until when it does not, because it has just done so.
    quiet_until: u64,
    /// The waker of the bell.
    bell: Option<Waker>,
    /// The thread of this table uses another one, or has ended.
    is_orphan: bool,
    /// The clock was paused when the bell last scanned the table, or when the last deadline was
    /// added.
    is_paused: bool,
    /// The time at which the last deadline was added.
    added: u64,
}

impl State {
    const fn new() -> Self {
        Self {
            deadlines: Vec::new(),
            free: Vec::new(),
            next: NEVER,
            quiet_until: 0,
            bell: None,
            is_orphan: false,
            is_paused: false,
            added: NEVER,
        }
    }
}

#[derive(Debug)]
struct Deadline {
    /// `NEVER` once it has fired.
    at: u64,
    waker: Option<Waker>,
}

impl Table {
    fn time_of(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.base))
    }

    fn is_closed(&self) -> bool {
        self.rung.load(Relaxed) == NEVER
    }

    // Nothing that can panic and no code of others runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, at: u64, now: u64, waker: Waker) -> usize {
        let mut state = self.lock();
        // Only a paused clock returns the same time twice: reading it takes longer than its
        // resolution.
        state.is_paused |= mem::replace(&mut state.added, now) == now;
        // The deadline has passed meanwhile: wake the task at once, to check it.
        let late = (at <= self.rung.load(Relaxed)).then(|| waker.clone());
        let deadline = Deadline { at, waker: Some(waker) };
        let place = match state.free.pop() {
            Some(place) => {
                state.deadlines[place] = deadline;
                place
            }
            None => memory::aside(|| {
                state.deadlines.push(deadline);
                state.deadlines.len().saturating_sub(1)
            }),
        };
        let due = at.max(state.quiet_until);
        let bell = if due < state.next { state.bell.take() } else { None };
        drop(state);
        late.into_iter().chain(bell).for_each(Waker::wake);
        place
    }

    fn remove(&self, place: usize) {
        let mut state = self.lock();
        let deadline = Deadline { at: NEVER, waker: None };
        let removed = mem::replace(&mut state.deadlines[place], deadline);
        memory::aside(|| state.free.push(place));
        let is_set_for_it = removed.at.max(state.quiet_until) <= state.next;
        let bell = if state.is_paused && is_set_for_it { state.bell.take() } else { None };
        drop(state);
        // Outside of the lock: dropping the last waker of a task drops the task, and with it
        // perhaps other deadlines.
        drop(removed);
        bell.into_iter().for_each(Waker::wake);
    }

    /// Returns the wakers that are due and when to scan again; `None` if the table is not needed
    /// any more.
    fn due(&self, bell: &Waker) -> (Vec<Waker>, Option<u64>) {
        let is_paused = is_paused();
        let mut state = self.lock();
        state.is_paused = is_paused;
        let now = self.time_of(Instant::now());
        if state.next <= now {
            state.quiet_until = now.saturating_add(TICK);
        }
        self.rung.store(now, Relaxed);
        let mut earliest = NEVER;
        let mut due = Vec::new();
        for deadline in &mut state.deadlines {
            if deadline.at <= now {
                deadline.at = NEVER;
                due.extend(deadline.waker.take());
            }
            earliest = earliest.min(deadline.at);
        }
        state.next = match earliest {
            NEVER => NEVER,
            earliest => earliest.max(state.quiet_until),
        };
        state.bell = Some(bell.clone());
        let is_over = state.is_orphan && earliest == NEVER;
        let next = (!is_over).then_some(state.next);
        (due, next)
    }

    /// Closes the table, and wakes all tasks so that they add their deadlines to another one.
    fn close(&self) {
        let mut state = self.lock();
        self.rung.store(NEVER, Relaxed);
        let bell = state.bell.take();
        let wakers: Vec<_> =
            state.deadlines.iter_mut().filter_map(|deadline| deadline.waker.take()).collect();
        drop(state);
        drop(bell);
        wake(wakers);
    }
}

/// Wakes all of them, even if one panics: other tasks must not miss their deadlines.
fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
    }
}

/// The task that fires the deadlines of a table. Ends with its runtime, or when the table is not
/// needed any more.
struct Bell {
    table: Arc<Table>,
    /// The timer, while it is set.
    sleep: Pin<Box<Option<Sleep>>>,
    /// Without timers there are no deadlines, and the task only notices the end of the runtime.
    has_timers: bool,
}

impl Future for Bell {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (due, next) = self.table.due(cx.waker());
            wake(due);
            match next {
                None => return Poll::Ready(()),
                Some(NEVER) => {
                    self.sleep.set(None);
                    return Poll::Pending;
                }
                Some(_) if !self.has_timers => return Poll::Pending,
                Some(next) => {
                    let at = self.table.base.checked_add(Duration::from_nanos(next));
                    let at = at.expect("it was made of an instant");
                    // Replaced instead of reset: a timer that is reset to later still wakes the
                    // runtime at its former time.
                    self.sleep.set(Some(sleep_until(at)));
                    let sleep = self.sleep.as_mut().as_pin_mut().expect("set above");
                    if sleep.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.table.close();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Other;

    impl Wake for Other {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_lent_waker_is_known_by_its_table_only_if_it_is_about_the_same_as_its_clone() {
        // As if one were the clone of the other: both are about nothing, and have a table each.
        let (lent, clone) = (futures_util::task::noop_waker(), Waker::noop());
        assert_eq!(lent.data(), clone.data());
        assert_ne!(vtable(&lent), vtable(clone));
        let other = Waker::from(Arc::new(Other));

        let both = Identity::new(&lent, clone);
        assert!(both.is_of(&lent) && both.is_of(clone));
        assert!(!both.is_of(&other));
        let one = Identity::new(&other, clone);
        assert!(one.is_of(clone));
        assert!(!one.is_of(&other));
    }
}
