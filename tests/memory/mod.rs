//! Random programs that allocate and free, and count every byte for themselves.

use std::fmt::Debug;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use request_budget::report::{Report, Reporter};
use request_budget::{Usage, Violation};

/// How many buffers a program has at most, at a time.
const SLOTS: usize = 6;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    /// Takes a slot; what was in it is freed first.
    Allocate(usize, Kind, usize),
    /// Makes room for so many more, in place or by a move.
    Grow(usize, usize),
    /// Gives room back, of so many parts of 256.
    Shrink(usize, usize),
    Free(usize),
    /// Frees a buffer that was allocated before the program began.
    FreeForeign(usize),
    /// Compares the usage up to now.
    Look,
    /// Ends the poll.
    Yield,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Bytes,
    /// Asked for as zeroes, which is another method of the allocator.
    Zeroes,
    /// Aligned to more than any allocator aligns by itself.
    Lines,
}

/// A buffer of which the capacity is known to the byte.
#[derive(Debug)]
pub(crate) enum Buffer {
    Bytes(Vec<u8>),
    Lines(Vec<Line>),
}

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line(#[expect(dead_code, reason = "it only takes room")] [u8; 64]);

impl Buffer {
    fn new(kind: Kind, count: usize) -> Self {
        black_box(match kind {
            Kind::Bytes => Self::Bytes(Vec::with_capacity(count)),
            Kind::Zeroes => Self::Bytes(vec![0; count]),
            Kind::Lines => Self::Lines(Vec::with_capacity(count)),
        })
    }

    fn unit(&self) -> u64 {
        match self {
            Self::Bytes(_) => 1,
            Self::Lines(_) => 64,
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Bytes(buffer) => buffer.capacity(),
            Self::Lines(buffer) => buffer.capacity(),
        }
    }

    fn grow(&mut self, to: usize) {
        match self {
            Self::Bytes(buffer) => {
                buffer.clear();
                buffer.reserve_exact(to);
            }
            Self::Lines(buffer) => buffer.reserve_exact(to),
        }
    }

    fn shrink(&mut self, to: usize) {
        match self {
            Self::Bytes(buffer) => {
                buffer.clear();
                buffer.shrink_to(to);
            }
            Self::Lines(buffer) => buffer.shrink_to(to),
        }
    }
}

/// What a program counts for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) allocated: u64,
    pub(crate) live: u64,
    pub(crate) peak: u64,
    /// What this poll has allocated less what it has freed, and the most that it was.
    net: i64,
    most: i64,
}

impl Count {
    pub(crate) fn allocate(&mut self, bytes: u64) {
        self.allocated += bytes;
        self.net += bytes as i64;
        self.most = self.most.max(self.net);
    }

    pub(crate) fn free(&mut self, bytes: u64) {
        self.net -= bytes as i64;
    }

    /// Live bytes stop at zero where a poll ends: what it has freed of others' is no credit.
    pub(crate) fn end_poll(&mut self) {
        *self = self.so_far();
    }

    fn so_far(mut self) -> Self {
        self.peak = self.peak.max(self.live + self.most as u64);
        self.live = self.live.saturating_add_signed(self.net);
        self.net = 0;
        self.most = 0;
        self
    }

    /// Adds what came after all of this.
    pub(crate) fn follow(&mut self, next: Self) {
        let next = next.so_far();
        self.end_poll();
        self.allocated += next.allocated;
        self.peak = self.peak.max(self.live + next.peak);
        self.live += next.live;
    }

    /// As in the usage: peak, gross and net.
    pub(crate) fn expected(self) -> [Option<u64>; 3] {
        let all = self.so_far();
        [all.peak, all.allocated, all.live].map(Some)
    }
}

pub(crate) fn measured(usage: &Usage) -> [Option<u64>; 3] {
    [usage.memory, usage.allocated, usage.retained]
}

/// A program, with all the room that it needs for itself: while it runs nothing is allocated but
/// its buffers.
#[derive(Debug)]
pub(crate) struct Program {
    ops: Arc<[Op]>,
    slots: Vec<Option<Buffer>>,
    foreign: Vec<Vec<u8>>,
    pub(crate) count: Count,
}

impl Program {
    pub(crate) fn new(ops: &Arc<[Op]>) -> Self {
        let foreign = ops.iter().filter_map(|op| match op {
            Op::FreeForeign(bytes) => Some(Vec::with_capacity(*bytes)),
            _ => None,
        });
        Self {
            ops: Arc::clone(ops),
            slots: (0..SLOTS).map(|_| None).collect(),
            foreign: foreign.collect(),
            count: Count::default(),
        }
    }

    /// Runs it, and gives it back with the buffers that are left in it.
    pub(crate) async fn run(mut self) -> Self {
        for at in 0..self.ops.len() {
            if let Op::Yield = self.ops[at] {
                yield_now().await;
            }
            self.step(at);
        }
        self
    }

    /// Runs it on a count that others write as well, so one after the other.
    pub(crate) async fn run_on(mut self, count: &Mutex<Count>) -> Self {
        for at in 0..self.ops.len() {
            if let Op::Yield = self.ops[at] {
                yield_now().await;
            }
            self.count = *count.lock().unwrap();
            self.step(at);
            *count.lock().unwrap() = self.count;
        }
        self
    }

    fn step(&mut self, at: usize) {
        let Self { ops, slots, foreign, count } = self;
        match ops[at] {
            Op::Allocate(slot, kind, size) => {
                free(&mut slots[slot], count);
                let buffer = Buffer::new(kind, size);
                assert_eq!(buffer.capacity(), size, "the buffer is as large as asked for");
                count.allocate(size as u64 * buffer.unit());
                slots[slot] = Some(buffer);
            }
            Op::Grow(slot, by) => {
                if let Some(buffer) = &mut slots[slot] {
                    let to = buffer.capacity() + by;
                    buffer.grow(to);
                    assert_eq!(buffer.capacity(), to, "it grows to what is asked for");
                    count.allocate(by as u64 * buffer.unit());
                }
            }
            Op::Shrink(slot, part) => {
                if let Some(buffer) = &mut slots[slot] {
                    let before = buffer.capacity();
                    let to = before * part / 256;
                    buffer.shrink(to);
                    assert_eq!(buffer.capacity(), to, "it shrinks to what is asked for");
                    count.free((before - to) as u64 * buffer.unit());
                }
            }
            Op::Free(slot) => free(&mut slots[slot], count),
            Op::FreeForeign(_) => {
                if let Some(buffer) = foreign.pop() {
                    count.free(buffer.capacity() as u64);
                }
            }
            Op::Look => {
                let usage = Usage::current().expect("it runs in a unit of work");
                assert_eq!(measured(&usage), count.expected(), "in the middle of a poll");
            }
            Op::Yield => count.end_poll(),
        }
    }
}

fn free(slot: &mut Option<Buffer>, count: &mut Count) {
    if let Some(buffer) = slot.take() {
        count.free(buffer.capacity() as u64 * buffer.unit());
    }
}

/// Lets others run; unlike tokio's this allocates nothing.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls a future once.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Keeps the usage of a unit of work at its end.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Usage>>>);

impl Ledger {
    pub(crate) fn new() -> Self {
        // Room for what is reported inside another scope.
        Self(Arc::new(Mutex::new(Vec::with_capacity(2))))
    }

    /// Peak, gross and net of the one unit of work that has ended.
    pub(crate) fn measured(&self) -> [Option<u64>; 3] {
        let usages = self.0.lock().unwrap();
        let [usage] = &usages[..] else { panic!("not one report: {usages:?}") };
        measured(usage)
    }
}

impl Reporter for Ledger {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.lock().unwrap().push(report.usage());
    }
}

/// Runs a test on so many random values, and fails with the smallest that fails.
pub(crate) fn check<T: Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&strategy, test) {
        panic!("{failure}");
    }
}

/// Programs that free only what they have allocated.
pub(crate) fn programs() -> impl Strategy<Value = Arc<[Op]>> {
    vec(op(), 0..60).prop_map(Arc::from)
}

/// Programs that also free what others have allocated.
pub(crate) fn programs_with_foreign() -> impl Strategy<Value = Arc<[Op]>> {
    let op = prop_oneof![6 => op(), 1 => size().prop_map(Op::FreeForeign)];
    vec(op, 0..60).prop_map(Arc::from)
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Bytes), Just(Kind::Zeroes), Just(Kind::Lines)];
    prop_oneof![
        4 => (0..SLOTS, kind, size()).prop_map(|(slot, kind, size)| Op::Allocate(slot, kind, size)),
        3 => (0..SLOTS, size()).prop_map(|(slot, by)| Op::Grow(slot, by)),
        3 => (0..SLOTS, 0..=256_usize).prop_map(|(slot, part)| Op::Shrink(slot, part)),
        3 => (0..SLOTS).prop_map(Op::Free),
        1 => Just(Op::Look),
        3 => Just(Op::Yield),
    ]
}

/// Mostly small, some so large that the allocator asks the system for them.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 6 => 1..2_000_usize, 1 => 2_000..300_000_usize]
}
