//! The deadlines of one thread, behind one timer of the runtime.
//!
//! A timer of tokio takes a lock of the whole runtime when it is set and again when it is dropped, which
//! threads then wait for: more than all else that a request costs here, and most requests are over long
//! before their deadline. So each thread notes its deadlines in a table of its own, and a task of the
//! runtime that it works for, with one timer, rings for all of them.
//!
//! That timer stays set when the deadline goes that it was set for: the next request would set it again,
//! and once it rings for nothing it is not set anew. While the clock is paused it is unset at once: an idle
//! runtime would make the time of the test jump to the deadline of a request that is over.

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

/// How long after it rang a table rings again: what is due in between rings together, so much later at
/// most. Bounds what looking through the table can cost.
const TICK: u64 = 5_000_000;

/// Later than anything.
const NEVER: u64 = u64::MAX;

thread_local! {
    static HERE: RefCell<Option<Owned>> = const { RefCell::new(None) };
}

/// A deadline in a table, until dropped: wakes a task when it is due.
#[derive(Debug)]
pub(super) struct Alarm {
    table: Arc<Table>,
    place: usize,
    /// In the time of the table.
    at: u64,
    wakes: Identity,
}

/// Which waker it is, without being one more to it: as long as the table has that waker, no other has the
/// same identity.
#[derive(Debug)]
struct Identity {
    data: usize,
    /// Of the waker that was lent. The compiler may make several copies of one table of functions, so a waker
    /// and its clone can differ in it, as those of a tokio runtime that blocks on a future do in release builds.
    lent_vtable: usize,
    vtable: usize,
}

impl Identity {
    /// That of the clone, and of the lent one if it is about the same data: an executor may lend a waker about a
    /// place on its stack, which is another task's at the next poll.
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
    /// Notes a deadline, unless no runtime with timers is running here.
    pub(super) fn set(at: Instant, now: Instant, waker: &Waker) -> Option<Self> {
        let handle = Handle::try_current().ok()?;
        HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            if here
                .as_ref()
                .is_none_or(|here| here.runtime != handle.id() || here.table.is_closed())
            {
                // With the one before, of another runtime.
                memory::aside(|| *here = Owned::new(&handle));
            }
            let table = here.as_ref().filter(|here| here.has_timers)?.table.clone();
            // Whoever is woken may set a deadline at once.
            drop(here);
            let (at, now) = (table.time_of(at), table.time_of(now));
            // The one that the table has: a borrowed waker may be another than its clone.
            let clone = waker.clone();
            let wakes = Identity::new(waker, &clone);
            let place = table.add(at, now, clone);
            Some(Self { table, place, at, wakes })
        })
        .ok()
        .flatten()
    }

    /// Whether all is as it was set: it has not rung, and would wake this task.
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

/// The table of a thread: for the runtime that it was last seen to work for.
struct Owned {
    runtime: runtime::Id,
    table: Arc<Table>,
    /// Asked once: the answer no is a panic, which prints though it is caught.
    has_timers: bool,
}

impl Owned {
    /// A new table, rung by a new task, or none if the runtime is being shut down.
    fn new(handle: &Handle) -> Option<Self> {
        let base = Instant::now();
        // Whether a runtime has timers cannot be asked.
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
    /// Up to when it has rung, in nanoseconds after `base`; `NEVER` once it is closed.
    rung: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    deadlines: Vec<Deadline>,
    /// Places in `deadlines` that nobody has.
    free: Vec<usize>,
    /// When the bell is going to look, if `bell` is there.
    next: u64,
    /// Until when it does not, because it just did.
    quiet_until: u64,
    /// What wakes the bell.
    bell: Option<Waker>,
    /// The thread of this table has another one, or has ended.
    is_orphan: bool,
    /// The clock was paused when the bell last looked, or when the last deadline was added.
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
    /// `NEVER` once it has rung.
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

    // Nothing that can panic, or that is not ours, runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, at: u64, now: u64, waker: Waker) -> usize {
        let mut state = self.lock();
        // A clock that runs is never read twice with the same result: two clock reads take longer than a tick.
        state.is_paused |= mem::replace(&mut state.added, now) == now;
        // Rung meanwhile: let it look again.
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
        // The last waker of a task takes the task with it, and that perhaps other deadlines.
        drop(removed);
        bell.into_iter().for_each(Waker::wake);
    }

    /// Takes what is due, and says when to look again; `None` if nobody needs this table any more.
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

    /// Lets all who wait look for another table.
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

/// Wakes all of them: tasks of others must not miss their deadlines for the fault of one.
fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
    }
}

/// The task that rings: ends with its runtime, or when nobody needs the table any more.
struct Bell {
    table: Arc<Table>,
    /// The timer, while it is set.
    sleep: Pin<Box<Option<Sleep>>>,
    /// Without timers there is no deadline either, and the task only notices the end of the runtime.
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
                    // Not reset: a timer that is put off wakes the runtime at its former time all the same.
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
