//! Which tasks recorded work may have spawned: those that got their number while it was polled.
//!
//! tokio does not reveal who spawned a task. But it numbers all tasks of the process in the order
//! in which they are spawned, so a number taken before a poll and one taken after it enclose those
//! of what the poll spawned. On several threads they enclose what others spawned at the same time
//! as well.

use std::cell::RefCell;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use tokio::runtime::Handle;
use tokio::task::{self, LocalSet};

use super::{Recording, running};
use crate::memory;
use crate::meter::Meter;

/// Where something runs, as far as tokio and the standard library reveal it.
#[derive(Debug, Clone)]
pub(crate) struct Whereabouts {
    /// The number of the task; `None` where the runtime blocks on a future, and outside of it.
    pub(crate) task: Option<u64>,
    /// The number of the thread; `None` if it cannot be read.
    pub(crate) thread: Option<u64>,
    /// In a unit of work.
    pub(crate) is_in_unit: bool,
    /// In an HTTP request.
    pub(crate) is_in_request: bool,
}

impl Whereabouts {
    pub(super) fn here(is_in_unit: bool) -> Self {
        let thread = number_of_thread(thread::current().id());
        Self { task: current_task(), thread, is_in_unit, is_in_request: false }
    }
}

/// What existed when a recording was started: everything with a number up to these.
#[derive(Debug)]
pub(crate) struct Existing {
    pub(crate) task: Option<u64>,
    pub(crate) thread: Option<u64>,
}

impl Existing {
    pub(super) fn now() -> Self {
        // A thread of its own shows which number is the next.
        let newest = thread::Builder::new().spawn(|| ()).ok();
        let thread = newest.map_or_else(|| thread::current().id(), |newest| newest.thread().id());
        Self { task: Mark::take(None, false).map(|mark| mark.at), thread: number_of_thread(thread) }
    }
}

/// The numbers of tasks that were spawned while a recording was running, by whom in its runtime.
///
/// On several threads a number can be among several of these.
#[derive(Debug, Default, Clone)]
pub(crate) struct Spawned {
    /// While the recorded work was polled.
    pub(crate) own: Vec<Range<u64>>,
    /// While other work was polled that is in no recording.
    pub(crate) others: Vec<Range<u64>>,
    /// While something was polled that is declared to be unrelated.
    pub(crate) unrelated: Vec<Range<u64>>,
    /// While work was polled that is in other recordings.
    pub(crate) rivals: Vec<Range<u64>>,
    /// While a driver worked for this library.
    pub(crate) library: Vec<Range<u64>>,
    /// Tasks in which the recorded work itself runs, or what is declared to be unrelated to it.
    pub(crate) accounted: Vec<u64>,
    /// Tasks in which other units of work run.
    pub(crate) apart: Vec<u64>,
}

/// The numbers of tasks do not ascend, so nothing can be derived from them.
static IS_DISORDERED: AtomicBool = AtomicBool::new(false);

/// Whether tasks are numbered in the order in which they were spawned.
pub(crate) fn are_tasks_ordered() -> bool {
    !IS_DISORDERED.load(Relaxed)
}

/// The number of the task that runs here.
fn current_task() -> Option<u64> {
    task::try_id().and_then(number_of_task)
}

fn number_of_task(id: task::Id) -> Option<u64> {
    let number = id.to_string().parse().ok();
    if number.is_none() {
        IS_DISORDERED.store(true, Relaxed);
    }
    number
}

fn number_of_thread(id: ThreadId) -> Option<u64> {
    // `ThreadId(7)`; the method that gives the number is not stable.
    format!("{id:?}").strip_prefix("ThreadId(")?.strip_suffix(')')?.parse().ok()
}

/// Uses up the number of a task.
fn next_task() -> Option<u64> {
    // Where the thread ends, no `LocalSet` can be made.
    if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
        return None;
    }
    // Never polled. It belongs to no runtime, so it changes neither metrics nor clocks of any.
    number_of_task(LocalSet::new().spawn_local(async {}).id())
}

/// A stretch of a thread's time, from a mark on.
#[derive(Debug)]
struct Open {
    start: u64,
    /// The marks that others took since.
    marks: Vec<u64>,
}

#[derive(Debug)]
struct Marks {
    newest: u64,
    open: Vec<Open>,
}

static MARKS: Mutex<Marks> = Mutex::new(Marks { newest: 0, open: Vec::new() });

/// A number of a task that no task has, taken to compare others with it.
struct Mark {
    at: u64,
    /// The tasks that were spawned in the stretch that ends with this mark.
    spawned: Vec<Range<u64>>,
}

impl Mark {
    /// Takes a mark that may end one stretch and begin another.
    fn take(ended: Option<u64>, begins: bool) -> Option<Self> {
        // No access panics midway, so poisoned marks are whole.
        let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next_task()?;
        if at <= mem::replace(&mut marks.newest, at) {
            IS_DISORDERED.store(true, Relaxed);
        }
        let ended = ended.and_then(|start| {
            let position = marks.open.iter().position(|open| open.start == start)?;
            Some(marks.open.swap_remove(position))
        });
        marks.open.iter_mut().for_each(|open| open.marks.push(at));
        if begins {
            marks.open.push(Open { start: at, marks: Vec::new() });
        }
        drop(marks);
        Some(Self { at, spawned: ended.map(|open| between(&open, at)).unwrap_or_default() })
    }
}

/// The numbers from the start of a stretch to its end, without marks.
fn between(open: &Open, end: u64) -> Vec<Range<u64>> {
    let mut first = open.start.saturating_add(1);
    let mut ranges = Vec::new();
    for &mark in open.marks.iter().chain([&end]) {
        if first < mark {
            ranges.push(first..mark);
        }
        first = mark.saturating_add(1);
    }
    ranges
}

/// On whose behalf a thread is running.
#[derive(Debug, Clone)]
enum Owner {
    /// Recorded work, of all these recordings.
    Recorded(Vec<Arc<Recording>>),
    /// Work that is known to be in no recording.
    Others,
    /// What is declared to be unrelated to all recordings.
    Unrelated,
    /// This library, or a driver for it: what that spawns is of no interest.
    Library,
}

impl Owner {
    fn of(meter: &Meter) -> Self {
        let recordings: Vec<_> = meter.recordings().collect();
        if recordings.is_empty() { Self::Others } else { Self::Recorded(recordings) }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Recorded(own), Self::Recorded(other)) => {
                own.len() == other.len() && own.iter().zip(other).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            _ => mem::discriminant(self) == mem::discriminant(other),
        }
    }

    fn owns(&self, recording: &Arc<Recording>) -> bool {
        matches!(self, Self::Recorded(own) if own.iter().any(|own| Arc::ptr_eq(own, recording)))
    }

    fn note(&self, spawned: &[Range<u64>]) {
        if spawned.is_empty() {
            return;
        }
        if let Self::Recorded(own) = self {
            own.iter().for_each(|own| own.spawned().own.extend_from_slice(spawned));
        }
        let here = Handle::try_current().ok().map(|here| here.id());
        let is_other = |other: &&Arc<Recording>| other.runtime() == here && !self.owns(other);
        for other in running().iter().filter(is_other) {
            let mut other = other.spawned();
            let list = match self {
                Self::Recorded(_) => &mut other.rivals,
                Self::Others => &mut other.others,
                Self::Unrelated => &mut other.unrelated,
                Self::Library => &mut other.library,
            };
            list.extend_from_slice(spawned);
        }
    }
}

/// A stretch of a thread's time, and for whom it runs.
#[derive(Debug)]
struct Piece {
    owner: Owner,
    start: Option<u64>,
}

thread_local! {
    static PIECE: RefCell<Option<Piece>> = const { RefCell::new(None) };
}

/// Replaces the current stretch of this thread; returns the one before, which has ended.
fn switch(owner: Option<Owner>) -> Option<Piece> {
    let before = PIECE.try_with(|piece| piece.take()).ok().flatten();
    let ended = before.as_ref().and_then(|piece| piece.start);
    let mark = Mark::take(ended, owner.is_some());
    if let (Some(before), Some(mark)) = (&before, &mark) {
        before.owner.note(&mark.spawned);
    }
    let piece = owner.map(|owner| Piece { owner, start: mark.map(|mark| mark.at) });
    // Fails while the thread ends, when nothing needs it any more.
    drop(PIECE.try_with(|here| here.replace(piece)));
    before
}

/// Runs a thread on behalf of somebody else, until dropped.
#[derive(Debug)]
pub(super) struct OnBehalf {
    before: Option<Owner>,
}

impl OnBehalf {
    /// Of this work; nothing if the thread does so already.
    pub(super) fn of(meter: &Meter) -> Option<Self> {
        memory::aside(|| {
            let on_behalf = Self::of_owner(Owner::of(meter));
            if on_behalf.is_some()
                && let Some(task) = current_task()
            {
                meter.recordings().for_each(|recording| recording.account_for(task));
                if meter.recordings().next().is_none() {
                    running().iter().for_each(|recording| recording.spawned().apart.push(task));
                }
            }
            on_behalf
        })
    }

    /// Of something that is declared to be unrelated.
    pub(super) fn of_unrelated() -> Option<Self> {
        memory::aside(|| {
            let on_behalf = Self::of_owner(Owner::Unrelated);
            if let Some(task) = current_task() {
                running().iter().for_each(|recording| recording.account_for(task));
            }
            on_behalf
        })
    }

    /// Of this library, or of a driver that works for it.
    fn of_library() -> Option<Self> {
        memory::aside(|| Self::of_owner(Owner::Library))
    }

    fn of_owner(owner: Owner) -> Option<Self> {
        let is_same =
            |piece: &Option<Piece>| piece.as_ref().is_some_and(|piece| piece.owner.is(&owner));
        if PIECE.try_with(|piece| is_same(&piece.borrow())).unwrap_or(true) {
            return None;
        }
        Some(Self { before: switch(Some(owner)).map(|piece| piece.owner) })
    }
}

impl Drop for OnBehalf {
    fn drop(&mut self) {
        memory::aside(|| drop(switch(self.before.take())));
    }
}

/// Runs code of a driver, or of this library: the tasks that it spawns are not the user's.
pub(crate) fn for_library<T>(piece: impl FnOnce() -> T) -> T {
    let _on_behalf = if super::is_live() { OnBehalf::of_library() } else { None };
    piece()
}

impl Spawned {
    /// How many tasks the recorded work has spawned of which nothing is known.
    pub(crate) fn unknown(&self) -> usize {
        let Self { own, unrelated, library, accounted, apart, .. } = self;
        let is_known = |task: &u64| {
            accounted.contains(task)
                || apart.contains(task)
                || unrelated.iter().chain(library).any(|known| known.contains(task))
        };
        own.iter().cloned().flatten().filter(|task| !is_known(task)).count()
    }
}

impl Recording {
    /// Notes that it is known what runs in this task, so it spawns nothing unseen.
    fn account_for(&self, task: u64) {
        let is_new = self.existing().task.is_some_and(|newest| newest < task);
        let mut spawned = self.spawned();
        if is_new && !spawned.accounted.contains(&task) {
            spawned.accounted.push(task);
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is expected")]
mod tests {
    use super::*;

    #[test]
    fn tasks_and_threads_are_numbered_in_order() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
        let mut numbers = Vec::new();
        for _ in 0..100 {
            numbers.push(next_task());
            let spawned = runtime.spawn(async { current_task() });
            numbers.push(number_of_task(spawned.id()));
            let here = runtime.block_on(spawned).expect("it does not panic");
            assert_eq!(numbers.last(), Some(&here));
            let blocking = runtime.spawn_blocking(current_task);
            numbers.push(number_of_task(blocking.id()));
            assert_eq!(runtime.block_on(blocking).ok().as_ref(), numbers.last());
        }
        assert!(numbers.iter().all(Option::is_some) && numbers.is_sorted());
        assert_eq!(runtime.block_on(async { current_task() }), None);
        let thread = |_| thread::spawn(|| thread::current().id()).join().expect("no panic");
        let threads: Vec<_> = (0..10).map(thread).map(number_of_thread).collect();
        assert!(threads.iter().all(Option::is_some) && threads.is_sorted());
        assert!(are_tasks_ordered());
    }

    #[test]
    fn marks_are_no_tasks() {
        let open = |marks: &[u64]| Open { start: 10, marks: marks.to_vec() };
        assert_eq!(between(&open(&[]), 11), []);
        assert_eq!(between(&open(&[11, 12]), 13), []);
        assert_eq!(between(&open(&[]), 13), [11..13]);
        assert_eq!(between(&open(&[12, 13]), 16), [11..12, 14..16]);
    }
}
