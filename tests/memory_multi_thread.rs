//! Memory on several threads, to the byte. One test only, since the allocator is that of the
//! process.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod memory;

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;

use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use request_budget::alloc::CountingAllocator;
use request_budget::{Budget, BudgetExt};
use tokio::runtime::Builder;

use memory::{
    Count, Ledger, Op, Program, check, poll_once, programs, programs_with_foreign, yield_now,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

#[test]
fn memory_is_measured_to_the_byte_on_several_threads() {
    random_programs_are_measured();
    every_poll_may_be_on_another_thread();
    a_carried_child_on_another_thread_adds_up();
    carried_children_at_once_add_up();
    what_another_thread_allocates_is_not_counted();
}

/// Many at once on four workers, which take them from each other.
fn random_programs_are_measured() {
    let runtime = Builder::new_multi_thread().worker_threads(4).build().unwrap();
    check(150, vec(programs_with_foreign(), 20..60), |all| {
        let spawn = |ops: &Arc<[Op]>| {
            let ledger = Ledger::new();
            let work = Program::new(ops).run().budgeted("test", Budget::new());
            (runtime.spawn(work.with_reporter(ledger.clone())), ledger)
        };
        let running: Vec<_> = all.iter().map(spawn).collect();
        for (running, ledger) in running {
            let program = runtime.block_on(running).unwrap().unwrap();
            prop_assert_eq!(ledger.measured(), program.count.expected());
        }
        Ok(())
    });
}

/// Polls on a thread that is made for this poll.
fn poll_elsewhere<F>(future: Pin<&mut F>) -> Poll<F::Output>
where
    F: Future<Output: Send> + Send,
{
    thread::scope(|threads| threads.spawn(|| poll_once(future)).join().unwrap())
}

/// No worker may happen to take a task from another; here each poll is on a thread of its own, and
/// what one thread allocates another one frees.
fn every_poll_may_be_on_another_thread() {
    check(150, programs_with_foreign(), |ops| {
        let ledger = Ledger::new();
        let work = Program::new(&ops).run().budgeted("test", Budget::new());
        let mut work = pin!(work.with_reporter(ledger.clone()));
        let program = loop {
            if let Poll::Ready(program) = poll_elsewhere(work.as_mut()) {
                break program.unwrap();
            }
        };
        prop_assert_eq!(ledger.measured(), program.count.expected());
        Ok(())
    });
}

/// One after the other, in any order of their polls, so that the peak is exact as well.
fn a_carried_child_on_another_thread_adds_up() {
    let turns = vec(any::<bool>(), 0..60);
    check(200, (programs(), programs(), turns), |(parent, child, turns)| {
        let (ledger, count) = (Ledger::new(), Mutex::new(Count::default()));
        let (carried, is_done) = (Mutex::new(None), AtomicBool::new(false));
        let (parent, child) = (Program::new(&parent), Program::new(&child));
        let work = async {
            *carried.lock().unwrap() = Some(child.run_on(&count).in_current_budget());
            yield_now().await;
            let parent = parent.run_on(&count).await;
            while !is_done.load(Relaxed) {
                yield_now().await;
            }
            parent
        };
        let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
        assert!(poll_once(work.as_mut()).is_pending());
        let mut child = pin!(carried.lock().unwrap().take().expect("it was made"));
        let mut left_of_child = None;
        let mut turns = turns.into_iter().chain([true, false].into_iter().cycle());
        let left_of_parent = loop {
            match turns.next() {
                Some(true) if left_of_child.is_none() => {
                    if let Poll::Ready(program) = poll_elsewhere(child.as_mut()) {
                        left_of_child = Some(program);
                        is_done.store(true, Relaxed);
                    }
                }
                _ => {
                    if let Poll::Ready(program) = poll_once(work.as_mut()) {
                        break program.unwrap();
                    }
                }
            }
        };
        prop_assert_eq!(ledger.measured(), count.lock().unwrap().expected());
        drop((left_of_parent, left_of_child));
        Ok(())
    });
}

/// At once: gross and net are exact, and the peak is between that of the largest and that of all
/// together.
fn carried_children_at_once_add_up() {
    let runtime = Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let without_looking = programs().prop_map(|ops| {
        let looks = |op: &Op| matches!(op, Op::Look);
        ops.iter().copied().filter(|op| !looks(op)).collect::<Arc<[_]>>()
    });
    check(200, vec(without_looking, 1..6), |all| {
        let ledger = Ledger::new();
        let mut programs: Vec<_> = all.iter().map(Program::new).collect();
        let carried = Mutex::new(Vec::with_capacity(programs.len()));
        let work = async {
            let children = programs.drain(..).map(|program| program.run().in_current_budget());
            carried.lock().unwrap().extend(children);
            yield_now().await;
        };
        let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
        assert!(poll_once(work.as_mut()).is_pending());
        let children = std::mem::take(&mut *carried.lock().unwrap());
        let running: Vec<_> = children.into_iter().map(|child| runtime.spawn(child)).collect();
        let left = runtime.block_on(join_all(running));
        let left: Vec<Program> = left.into_iter().map(Result::unwrap).collect();
        assert!(poll_once(work.as_mut()).is_ready());

        let mut together = Count::default();
        left.iter().for_each(|program| together.follow(program.count));
        let [_, allocated, retained] = together.expected();
        let [peak, ..] = ledger.measured();
        prop_assert_eq!(ledger.measured(), [peak, allocated, retained]);
        let peaks = || left.iter().map(|program| program.count.expected()[0].unwrap());
        let between = peaks().max().unwrap()..=peaks().sum();
        prop_assert!(between.contains(&peak.unwrap()), "{peak:?} of {between:?}");
        Ok(())
    });
}

fn what_another_thread_allocates_is_not_counted() {
    const BYTES: usize = 1 << 20;
    let ledger = Ledger::new();
    let work = async {
        let made = thread::spawn(|| vec![1_u8; BYTES]).join().unwrap();
        assert_eq!(made.len(), BYTES);
        made
    };
    let work = work.budgeted("test", Budget::new()).with_reporter(ledger.clone());
    let Poll::Ready(Ok(_made)) = poll_once(pin!(work)) else { panic!("it waits for nothing") };
    let most = u64::try_from(BYTES).unwrap();
    assert!(ledger.measured().iter().all(|bytes| bytes.is_some_and(|bytes| bytes < most)));
}
