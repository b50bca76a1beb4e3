//! Whose a statement is that ran in no measured work: the rule, and nothing else.
//!
//! Suspected is what the measured work may have spawned without carrying it along. Not suspected is what
//! existed before it, what runs in another unit of work or was spawned by one, and what was spawned while the
//! measured work had no task that could have spawned it.

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
    /// It answers a request, and no `Recorder` says whose.
    Served,
    /// It runs in what began after the measurement, and nothing shows that others began it.
    Unknown,
    /// It is of others.
    Unrelated,
}

/// The statements that may be of the recorded work, of all that ran in no recorded work meanwhile.
///
/// `has_served` is whether a `Recorder` knows which requests are those of the measured work.
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
    /// Tasks that others spawned on another thread just while the work was polled.
    coincident: HashSet<u64>,
}

impl Known<'_> {
    /// So many tasks of others do the same, at least, where one of them can be taken for a coincidence.
    const MANY: usize = 2;

    /// The tasks that were spawned while the work was polled, but only happened to be.
    ///
    /// Those before which others have spawned several that do the same: work that spawns them is going on beside
    /// the measured one.
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
        // It takes a while.
        stack: impl Fn() -> Stack,
    ) -> Relation {
        let relation = match ran.task {
            Some(task) => self.relation_of_task(task, ran.is_in_unit, &stack),
            None => self.relation_of_thread(ran.thread, &stack),
        };
        match relation {
            Relation::Unrelated if !has_served && stack().is_served => Relation::Served,
            relation => relation,
        }
    }

    fn relation_of_task(&self, task: u64, is_in_unit: bool, stack: impl Fn() -> Stack) -> Relation {
        let Some(newest) = self.existing.task.filter(|_| are_tasks_ordered()) else {
            return Relation::Unknown;
        };
        let Spawned { own, others, unrelated, rivals, library, accounted, .. } = &self.spawned;
        if task <= newest || unrelated.iter().any(|unrelated| unrelated.contains(&task)) {
            return Relation::Unrelated;
        }
        if self.is_own(task) {
            // A job is meant to be apart, a request is not: its handler was spawned out of its scope.
            let stack = if is_in_unit { stack() } else { Stack::default() };
            return match is_in_unit && !stack.is_request && !stack.is_unreadable {
                true => Relation::Unrelated,
                false => Relation::Spawned,
            };
        }
        let is_of_others =
            |task: &u64| others.iter().chain(rivals).any(|others| others.contains(task));
        if is_in_unit || is_of_others(&task) {
            return Relation::Unrelated;
        }
        // A task of which it is known what runs in it spawns nothing unseen.
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

    /// The relation of what runs in no task: a runtime blocks on it.
    fn relation_of_thread(&self, thread: Option<u64>, stack: impl Fn() -> Stack) -> Relation {
        let (Some(newest), Some(thread)) = (self.existing.thread, thread) else {
            return Relation::Unknown;
        };
        // Whoever has the runtime itself, not only a handle, is where a program or a test begins.
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

    const NOTHING: Stack = Stack {
        is_served: false,
        is_request: false,
        is_entry: false,
        is_test: false,
        is_unreadable: false,
    };

    fn known(existing: &Existing) -> Known<'_> {
        Known { existing, spawned: Spawned::default(), coincident: HashSet::new() }
    }

    fn ran(task: impl Into<Option<u64>>, thread: u64) -> Whereabouts {
        Whereabouts { task: task.into(), thread: Some(thread), is_in_unit: false }
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
        // Two that spawn nothing unseen, and one of a driver.
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
        let relation = |task, stack: Stack| {
            let in_unit = Whereabouts { is_in_unit: true, ..ran(task, 9) };
            known.relation(&in_unit, false, || stack)
        };
        let request = Stack { is_request: true, ..NOTHING };
        let unreadable = Stack { is_unreadable: true, ..NOTHING };
        for stack in [NOTHING, request, unreadable] {
            assert_eq!([5, 25].map(|task| relation(task, stack)), [Relation::Unrelated; 2]);
        }
        assert_eq!(relation(20, NOTHING), Relation::Unrelated);
        assert_eq!([request, unreadable].map(|stack| relation(20, stack)), [Relation::Spawned; 2]);
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
