//! Decides whether a statement that ran outside of all measured work may belong to a measurement.
//!
//! A statement is suspected if the measured work may have spawned the task that executed it,
//! without `in_current_budget`. It is not suspected if its task existed before the measurement,
//! runs in another unit of work or was spawned by one, or was spawned at a moment when no task of
//! the measured work could have done so.

use std::collections::HashSet;

use super::site::{self, Stack};
use crate::meter::recording::{
    Existing, Recording, Spawned, Stray, Whereabouts, are_tasks_ordered,
};

/// How a statement that ran in no measured work is related to a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// It runs in a task that was spawned while the measured work was polled.
    Spawned,
    /// It handles a request, and no `Recorder` knows which client sent that.
    Served,
    /// It runs in a task or thread that began after the measurement, and nothing shows that others
    /// began it.
    Unknown,
    /// It belongs to other work.
    Unrelated,
}

/// Selects, from the statements that ran outside of all recorded work, those that may belong to
/// this recording.
///
/// `has_served`: a `Recorder` knows which requests belong to the measured work.
pub(super) fn suspects<'a>(
    recording: &Recording,
    strays: &'a [Stray],
    has_served: bool,
) -> Vec<&'a Stray> {
    if strays.is_empty() {
        return Vec::new();
    }
    let mut known = Known {
        existing: recording.existing(),
        spawned: recording.spawned().clone(),
        coincident: HashSet::new(),
    };
    known.coincident = known.coincident_among(strays);
    let is_suspected = |stray: &&Stray| {
        let stack = || site::stack(&stray.entry.site);
        known.relation(&stray.ran, has_served, stack) != Relation::Unrelated
    };
    strays.iter().filter(is_suspected).collect()
}

/// What is known of tasks and threads.
struct Known<'a> {
    existing: &'a Existing,
    spawned: Spawned,
    /// Tasks that other work spawned on another thread while the measured work was being polled.
    coincident: HashSet<u64>,
}

impl Known<'_> {
    /// How many earlier tasks of others must do the same before a task counts as a coincidence.
    const MANY: usize = 2;

    /// The tasks that were spawned while the measured work was polled, but by other work.
    ///
    /// A task is one of them if others spawned several that do the same before it: then something
    /// beside the measured work keeps spawning such tasks.
    fn coincident_among(&self, strays: &[Stray]) -> HashSet<u64> {
        let tasks = || strays.iter().filter_map(|stray| Some((stray.ran.task?, stray)));
        let is_known = |task: u64| {
            let Spawned { own, rivals, .. } = &self.spawned;
            own.iter().chain(rivals).any(|range| range.contains(&task))
        };
        let others = || tasks().filter(|(task, _)| !is_known(*task));
        let is_coincident = |task: u64, stray: &Stray| {
            let before = others().filter(|(other, _)| *other < task).collect::<Vec<_>>();
            if before.is_empty() {
                return false;
            }
            let places = site::places(&stray.entry.site);
            let is_same =
                |other: &Stray| !places.is_empty() && site::places(&other.entry.site) == places;
            let same = before.iter().filter(|(_, other)| is_same(other)).map(|(task, _)| task);
            same.collect::<HashSet<_>>().len() >= Self::MANY
        };
        let own = tasks().filter(|(task, _)| self.is_own(*task));
        own.filter(|(task, stray)| is_coincident(*task, stray)).map(|(task, _)| task).collect()
    }

    fn is_own(&self, task: u64) -> bool {
        self.spawned.own.iter().any(|own| own.contains(&task)) && !self.coincident.contains(&task)
    }

    fn relation(
        &self,
        ran: &Whereabouts,
        has_served: bool,
        // Called only where it is needed, because resolving a stack is slow.
        stack: impl Fn() -> Stack,
    ) -> Relation {
        let relation = match ran.task {
            Some(task) => self.relation_of_task(task, ran),
            None => self.relation_of_thread(ran.thread, &stack),
        };
        match relation {
            Relation::Unrelated if !has_served && stack().is_served => Relation::Served,
            relation => relation,
        }
    }

    fn relation_of_task(&self, task: u64, ran: &Whereabouts) -> Relation {
        let Some(newest) = self.existing.task.filter(|_| are_tasks_ordered()) else {
            return Relation::Unknown;
        };
        let Spawned { own, others, unrelated, rivals, library, accounted, .. } = &self.spawned;
        if task <= newest || unrelated.iter().any(|unrelated| unrelated.contains(&task)) {
            return Relation::Unrelated;
        }
        if self.is_own(task) {
            // A job with a budget of its own is separate on purpose. A request is not: somebody
            // spawned the handler out of the scope of the test.
            return match ran.is_in_unit && !ran.is_in_request {
                true => Relation::Unrelated,
                false => Relation::Spawned,
            };
        }
        let is_of_others =
            |task: &u64| others.iter().chain(rivals).any(|others| others.contains(task));
        if ran.is_in_unit || is_of_others(&task) {
            return Relation::Unrelated;
        }
        // What runs in an accounted task is recorded, and so are the tasks that it spawns.
        let may_spawn = |older: &u64| {
            *older < task
                && !accounted.contains(older)
                && !self.coincident.contains(older)
                && !unrelated.iter().chain(library).any(|known| known.contains(older))
        };
        match own.iter().cloned().flatten().any(|older| may_spawn(&older)) {
            true => Relation::Unknown,
            false => Relation::Unrelated,
        }
    }

    /// The relation of a statement that runs outside of tasks, in a future that a runtime blocks
    /// on.
    fn relation_of_thread(&self, thread: Option<u64>, stack: impl Fn() -> Stack) -> Relation {
        let (Some(newest), Some(thread)) = (self.existing.thread, thread) else {
            return Relation::Unknown;
        };
        // A thread that owns a runtime, and has not only a handle to it, starts a program or a test
        // of its own.
        match thread <= newest || stack().is_entry {
            true => Relation::Unrelated,
            false => Relation::Unknown,
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is known")]
mod tests {
    use super::*;

    const NOTHING: Stack =
        Stack { is_served: false, is_entry: false, is_test: false, is_unreadable: false };

    fn known(existing: &Existing) -> Known<'_> {
        Known { existing, spawned: Spawned::default(), coincident: HashSet::new() }
    }

    fn ran(task: impl Into<Option<u64>>, thread: u64) -> Whereabouts {
        let task = task.into();
        Whereabouts { task, thread: Some(thread), is_in_unit: false, is_in_request: false }
    }

    #[test]
    fn what_was_spawned_meanwhile_and_what_that_may_have_spawned_is_suspected() {
        let existing = Existing { task: Some(10), thread: Some(3) };
        let mut known = known(&existing);
        known.spawned.own = vec![20..22, 30..31];
        known.spawned.others = vec![40..42];
        let relations = |known: &Known<'_>, tasks: &[u64]| -> Vec<_> {
            let relation = |task: &u64| known.relation(&ran(*task, 9), false, || NOTHING);
            tasks.iter().map(relation).collect()
        };
        use Relation::{Spawned, Unknown, Unrelated};
        let tasks = [10, 11, 20, 21, 22, 30, 40];
        let expected = [Unrelated, Unrelated, Spawned, Spawned, Unknown, Spawned, Unrelated];
        assert_eq!(relations(&known, &tasks), expected);
        // Two whose children are recorded, and one of a driver.
        known.spawned.accounted = vec![20, 21];
        known.spawned.library = vec![30..31];
        assert_eq!(relations(&known, &[22, 29, 31]), [Unrelated; 3]);
        known.spawned.library.clear();
        assert_eq!(relations(&known, &[29, 31]), [Unrelated, Unknown]);
        known.coincident.insert(30);
        assert_eq!(relations(&known, &[30, 31]), [Unrelated; 2]);
    }

    #[test]
    fn of_units_of_work_only_requests_are_suspected_and_only_if_the_work_spawned_them() {
        let existing = Existing { task: Some(10), thread: Some(3) };
        let mut known = known(&existing);
        known.spawned.own = vec![20..21];
        let relation = |task, is_in_request| {
            let in_unit = Whereabouts { is_in_unit: true, is_in_request, ..ran(task, 9) };
            known.relation(&in_unit, false, || NOTHING)
        };
        for is_in_request in [false, true] {
            let others = [5, 25].map(|task| relation(task, is_in_request));
            assert_eq!(others, [Relation::Unrelated; 2]);
        }
        assert_eq!(relation(20, false), Relation::Unrelated);
        assert_eq!(relation(20, true), Relation::Spawned);
    }

    #[test]
    fn a_request_is_suspected_unless_it_is_known_whose_requests_there_are() {
        let existing = Existing { task: Some(10), thread: Some(3) };
        let served = || Stack { is_served: true, is_entry: true, ..NOTHING };
        let relation = |has_served| known(&existing).relation(&ran(5, 1), has_served, served);
        assert_eq!([false, true].map(relation), [Relation::Served, Relation::Unrelated]);
    }

    #[test]
    fn threads_are_of_others_if_they_are_older_or_begin_something() {
        let existing = Existing { task: Some(10), thread: Some(3) };
        let relation = |thread, is_entry| {
            let stack = || Stack { is_entry, ..NOTHING };
            known(&existing).relation(&ran(None, thread), false, stack)
        };
        assert_eq!(relation(3, false), Relation::Unrelated);
        assert_eq!(relation(4, true), Relation::Unrelated);
        assert_eq!(relation(4, false), Relation::Unknown);
    }

    #[test]
    fn without_numbers_everything_is_suspected() {
        let existing = Existing { task: None, thread: None };
        let relation = |task| known(&existing).relation(&ran(task, 1), false, || NOTHING);
        assert_eq!([Some(1), None].map(relation), [Relation::Unknown; 2]);
    }
}
