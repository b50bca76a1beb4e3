//! Memory on one thread, to the byte. One test only, since the allocator is that of the process.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod memory;

use std::convert::Infallible;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use proptest::collection::vec;
use proptest::prelude::*;
use request_budget::alloc::CountingAllocator;
use request_budget::db::Query;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Limit, Usage, Violation};
use tokio::runtime::Builder;
use tower::{Layer, Service};

use memory::{
    Count, Ledger, Op, Program, check, measured, poll_once, programs, programs_with_foreign,
    yield_now,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

#[test]
fn memory_is_measured_to_the_byte_on_one_thread() {
    asking_for_the_usage_costs_nothing();
    random_programs_are_measured();
    a_scope_inside_a_scope_is_charged_to_both();
    a_carried_child_in_the_same_poll_is_charged_once();
    destructors_are_charged();
    memory_that_others_allocated_is_no_credit();
    our_own_books_cost_the_work_nothing();
    the_box_of_a_request_is_no_memory_of_its_work();
    what_could_not_be_allocated_is_not_charged();
    a_future_carried_into_other_work_is_charged_to_its_own();
    a_future_carried_into_work_inside_work_is_charged_to_neither();
    a_future_of_other_work_that_a_reporter_polls_is_charged_to_its_own();
}

/// First of all, because the first question in a process has to find out whether bytes are counted.
fn asking_for_the_usage_costs_nothing() {
    let ledger = Ledger::new();
    let work = async {
        let first = Usage::current().unwrap();
        let buffer = black_box(Vec::<u8>::with_capacity(100));
        let second = Usage::current().unwrap();
        drop(buffer);
        (measured(&first), measured(&second), measured(&Usage::current().unwrap()))
    };
    let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
    let Poll::Ready(Ok((first, second, third))) = poll_once(work.as_mut()) else { panic!() };
    assert_eq!(first, [Some(0), Some(0), Some(0)]);
    assert_eq!(second, [Some(100), Some(100), Some(100)]);
    assert_eq!(third, [Some(100), Some(100), Some(0)]);
    assert_eq!(ledger.measured(), [Some(100), Some(100), Some(0)]);
}

/// Several at once, so that their polls alternate.
fn random_programs_are_measured() {
    let runtime = Builder::new_current_thread().build().unwrap();
    check(400, vec(programs_with_foreign(), 1..8), |all| {
        runtime.block_on(async {
            let spawn = |ops: &Arc<[Op]>| {
                let ledger = Ledger::new();
                let work = Program::new(ops).run().budgeted("test", Budget::new());
                (tokio::spawn(work.with_reporter(ledger.clone())), ledger)
            };
            let running: Vec<_> = all.iter().map(spawn).collect();
            for (running, ledger) in running {
                let program = running.await.unwrap().unwrap();
                prop_assert_eq!(ledger.measured(), program.count.expected());
            }
            Ok(())
        })
    });
}

fn a_scope_inside_a_scope_is_charged_to_both() {
    /// Runs one program in the outer scope up to its end, one in the inner, and one in the outer.
    /// All that is left in them comes back, so as to be freed outside.
    fn run(all: [&Arc<[Op]>; 3]) -> ([Program; 3], [[Option<u64>; 3]; 2]) {
        let (inner, outer) = (Ledger::new(), Ledger::new());
        let [before, inside, after] = all.map(Program::new);
        let inside = inside.run().budgeted("inner", Budget::new());
        let work = async {
            let before = before.run().await;
            let inside = inside.with_reporter(inner.clone()).await.unwrap();
            [before, inside, after.run().await]
        };
        let mut work = pin!(work.budgeted("outer", Budget::new()).with_reporter(outer.clone()));
        loop {
            if let Poll::Ready(result) = poll_once(work.as_mut()) {
                return (result.unwrap(), [inner.measured(), outer.measured()]);
            }
        }
    }

    // Its account is not, but the reporter that the inner scope was given is memory of the outer
    // one.
    let nothing: Arc<[Op]> = Arc::new([]);
    let (_, [inner, outer]) = run([&nothing; 3]);
    assert_eq!(inner, [Some(0), Some(0), Some(0)]);
    let [Some(own), Some(all), Some(0)] = outer else { panic!("{outer:?}") };
    assert_eq!(own, all);
    assert_eq!(own, size_of::<[usize; 3]>() as u64, "a reporter of one word, and its counts");

    let without_looking = || {
        let looks = |op: &Op| matches!(op, Op::Look);
        programs().prop_map(move |ops| ops.iter().copied().filter(|op| !looks(op)).collect())
    };
    let programs = (without_looking(), programs(), without_looking());
    check(400, programs, |(before, inside, after): (Arc<[Op]>, _, Arc<[Op]>)| {
        let ([before, inside, after], [inner, outer]) = run([&before, &inside, &after]);
        prop_assert_eq!(inner, inside.count.expected());
        let [before, inside, after] = [before, inside, after].map(|program| program.count);
        let mut count = Count::default();
        count.follow(before);
        count.allocate(own);
        count.follow(inside);
        count.free(own);
        count.follow(after);
        prop_assert_eq!(outer, count.expected());
        Ok(())
    });
}

fn a_carried_child_in_the_same_poll_is_charged_once() {
    check(200, (programs(), programs()), |(parent, child)| {
        let (ledger, count) = (Ledger::new(), Mutex::new(Count::default()));
        let (parent, child) = (Program::new(&parent), Program::new(&child));
        let work = async {
            let child = child.run_on(&count).in_current_budget();
            join(parent.run_on(&count), child).await
        };
        let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
        let left = loop {
            if let Poll::Ready(left) = poll_once(work.as_mut()) {
                break left;
            }
        };
        prop_assert_eq!(ledger.measured(), count.lock().unwrap().expected());
        drop(left);
        Ok(())
    });
}

fn destructors_are_charged() {
    /// Frees its own, and allocates before that.
    struct Late(#[expect(dead_code, reason = "it is to be freed")] Vec<u8>);

    impl Drop for Late {
        fn drop(&mut self) {
            drop(black_box(Vec::<u8>::with_capacity(3_000)));
        }
    }

    let work = |ledger: &Ledger| {
        let work = async {
            let _late = Late(black_box(Vec::with_capacity(1_000)));
            yield_now().await;
            yield_now().await;
        };
        Box::pin(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()))
    };
    let with_it = [Some(4_000), Some(4_000), Some(0)];

    let ended = Ledger::new();
    let mut future = work(&ended);
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(poll_once(future.as_mut()).is_ready());
    assert_eq!(ended.measured(), with_it);

    let dropped = Ledger::new();
    let mut future = work(&dropped);
    assert!(poll_once(future.as_mut()).is_pending());
    drop(future);
    assert_eq!(dropped.measured(), with_it);

    let dropped_elsewhere = Ledger::new();
    let mut future = work(&dropped_elsewhere);
    assert!(poll_once(future.as_mut()).is_pending());
    std::thread::spawn(move || drop(future)).join().unwrap();
    assert_eq!(dropped_elsewhere.measured(), with_it);

    // A carried child is charged wherever it is dropped, also one that was never polled.
    let (ledger, carried) = (Ledger::new(), Mutex::new(None));
    let work = async {
        let late = Late(black_box(Vec::with_capacity(1_000)));
        *carried.lock().unwrap() = Some(async move { drop(late) }.in_current_budget());
        yield_now().await;
    };
    let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(work.as_mut()).is_pending());
    drop(carried.lock().unwrap().take());
    assert!(poll_once(work.as_mut()).is_ready());
    assert_eq!(ledger.measured(), with_it);
}

fn memory_that_others_allocated_is_no_credit() {
    let foreign = Vec::<u8>::with_capacity(1 << 20);
    let ledger = Ledger::new();
    let work = async {
        drop(foreign);
        let meanwhile = Usage::current().unwrap();
        assert_eq!(measured(&meanwhile), [Some(0), Some(0), Some(0)]);
        yield_now().await;
        drop(black_box(Vec::<u8>::with_capacity(5_000)));
        yield_now().await;
        black_box(Vec::<u8>::with_capacity(3_000))
    };
    let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(work.as_mut()).is_pending());
    assert!(poll_once(work.as_mut()).is_pending());
    let Poll::Ready(result) = poll_once(work.as_mut()) else { panic!("it has ended") };
    assert_eq!(ledger.measured(), [Some(5_000), Some(8_000), Some(3_000)]);
    drop(result);

    // In one and the same poll it does hide what comes after it: the peak is a lower bound there.
    let foreign = Vec::<u8>::with_capacity(10_000);
    let ledger = Ledger::new();
    let work = async {
        drop(foreign);
        drop(black_box(Vec::<u8>::with_capacity(12_000)));
    };
    let mut work = pin!(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
    assert!(poll_once(work.as_mut()).is_ready());
    assert_eq!(ledger.measured(), [Some(2_000), Some(12_000), Some(0)]);
}

/// Tables, violations, and what a subscriber and a reporter do with a report.
fn our_own_books_cost_the_work_nothing() {
    let statements: Vec<String> = (0..300).map(|n| format!("SELECT {n} FROM somewhere")).collect();
    let texts = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&texts);
    let ledger = Ledger::new();
    let work = async {
        for _ in 0..2 {
            for statement in &statements {
                drop(Query::start(statement).unwrap());
            }
            yield_now().await;
        }
        async {}.external("payments").await.unwrap();
        drop(black_box(Vec::<u8>::with_capacity(700)));
    };
    let budget = Budget::new().queries(2).repeated_queries(1).external_calls(0);
    let inner = work.budgeted("inner", budget).with_reporter(move |violation: &Violation| {
        kept.lock().unwrap().push(violation.to_string());
    });
    let mut outer = pin!(inner.budgeted("outer", Budget::new()).with_reporter(ledger.clone()));
    while poll_once(outer.as_mut()).is_pending() {}
    assert_eq!(texts.lock().unwrap().len(), 3);
    // Nor is the account of the inner work any memory of the outer one.
    assert_eq!(ledger.measured(), [Some(700), Some(700), Some(0)]);
}

/// Where there is a MongoDB client, requests and bodies lie in boxes.
fn the_box_of_a_request_is_no_memory_of_its_work() {
    let run = || {
        let ledger = Ledger::new();
        let layer = BudgetLayer::new(Budget::new()).with_reporter(ledger.clone());
        let mut service = layer.layer(tower::service_fn(|_: http::Request<()>| async {
            let large = [1_u8; 3_000];
            yield_now().await;
            let kept = black_box(Vec::<u8>::with_capacity(usize::from(large[7]) * 2_000));
            let frames = poll_fn(move |_| {
                drop(black_box(Vec::<u8>::with_capacity(1_000)));
                assert!(kept.is_empty());
                Poll::Ready(Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"body"))))
            });
            Ok::<_, Infallible>(http::Response::new(StreamBody::new(frames.into_stream())))
        }));
        let mut answer = pin!(service.call(http::Request::new(())));
        let answer = loop {
            if let Poll::Ready(answer) = poll_once(answer.as_mut()) {
                break answer.unwrap();
            }
        };
        assert!(poll_once(pin!(Box::pin(answer.into_body()).collect())).is_ready());
        ledger.measured()
    };
    assert_eq!(run(), [Some(3_000), Some(3_000), Some(0)]);
    let mut options = mongodb::options::ClientOptions::default();
    request_budget::mongodb::instrument(&mut options, request_budget::mongodb::Detail::Counts);
    assert_eq!(run(), [Some(3_000), Some(3_000), Some(0)]);
}

fn what_could_not_be_allocated_is_not_charged() {
    let ledger = Ledger::new();
    let work = async {
        let mut buffer = Vec::<u8>::with_capacity(1 << 21);
        black_box(&mut buffer).try_reserve_exact(1 << 61).unwrap_err();
        black_box(Vec::<u8>::new()).try_reserve_exact(1 << 61).unwrap_err();
        buffer.reserve_exact(1 << 22);
        assert_eq!(buffer.capacity(), 1 << 22);
    };
    let budget = Budget::new().memory(Limit::hard(1 << 30));
    let mut work = pin!(work.budgeted("test", budget).with_reporter(ledger.clone()));
    assert!(matches!(poll_once(work.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(ledger.measured(), [Some(1 << 22), Some(1 << 22), Some(0)]);
}

fn a_future_carried_into_other_work_is_charged_to_its_own() {
    let (own, stranger) = (Ledger::new(), Ledger::new());
    let carried = Arc::new(Mutex::new(None));
    let owner = async {
        let future = async { black_box(Vec::<u8>::with_capacity(1_000)).len() };
        *carried.lock().unwrap() = Some(future.in_current_budget());
        yield_now().await;
    };
    let mut owner = pin!(owner.budgeted("owner", Budget::new()).with_reporter(own.clone()));
    assert!(poll_once(owner.as_mut()).is_pending());
    let work = async {
        let kept = black_box(Vec::<u8>::with_capacity(300));
        let carried = carried.lock().unwrap().take().unwrap();
        carried.await;
        drop(black_box(Vec::<u8>::with_capacity(50)));
        kept.len()
    };
    let mut work = pin!(work.budgeted("stranger", Budget::new()).with_reporter(stranger.clone()));
    assert!(poll_once(work.as_mut()).is_ready());
    assert!(poll_once(owner.as_mut()).is_ready());
    assert_eq!(own.measured(), [Some(1_000), Some(1_000), Some(0)]);
    assert_eq!(stranger.measured(), [Some(350), Some(350), Some(0)]);
}

/// A future of some work, which allocates 1,000 bytes and frees them, and is to be polled
/// elsewhere.
fn carried() -> (impl Future<Output = ()>, BoxFuture<'static, ()>, Ledger) {
    let ledger = Ledger::new();
    let carried = Arc::new(Mutex::new(None));
    let here = Arc::clone(&carried);
    let owner = async move {
        let future = async { drop(black_box(Vec::<u8>::with_capacity(1_000))) };
        *here.lock().unwrap() = Some(future.in_current_budget());
        yield_now().await;
    };
    let owner = owner.budgeted("owner", Budget::new()).with_reporter(ledger.clone());
    let mut owner = Box::pin(owner.map(|end| end.unwrap()));
    assert!(poll_once(owner.as_mut()).is_pending());
    let carried = carried.lock().unwrap().take().unwrap();
    (owner, Box::pin(carried), ledger)
}

fn a_future_carried_into_work_inside_work_is_charged_to_neither() {
    let run = |carried: &mut BoxFuture<'static, ()>| {
        let (outer, inner) = (Ledger::new(), Ledger::new());
        let work = async {
            let kept = black_box(Vec::<u8>::with_capacity(300));
            carried.await;
            drop(kept);
        };
        let work = work.budgeted("inner", Budget::new()).with_reporter(inner.clone());
        let work = async {
            let kept = black_box(Vec::<u8>::with_capacity(50));
            work.await.unwrap();
            drop(black_box(Vec::<u8>::with_capacity(5_000)));
            drop(kept);
        };
        let mut work = pin!(work.budgeted("outer", Budget::new()).with_reporter(outer.clone()));
        assert!(poll_once(work.as_mut()).is_ready());
        [outer.measured(), inner.measured()]
    };
    let mut nothing: BoxFuture<'static, ()> = Box::pin(async {});
    let alone = run(&mut nothing);
    let (owner, mut carried, ledger) = carried();
    assert_eq!(run(&mut carried), alone);
    assert!(poll_once(pin!(owner)).is_ready());
    assert_eq!(ledger.measured()[1], Some(1_000));
}

fn a_future_of_other_work_that_a_reporter_polls_is_charged_to_its_own() {
    let (owner, carried, own) = carried();
    let stranger = Ledger::new();
    let carried = Mutex::new(Some(carried));
    let reporter = move |_: &Violation| {
        let carried = carried.lock().unwrap().take().unwrap();
        assert!(poll_once(pin!(carried)).is_ready());
    };
    let work = async {
        let kept = black_box(Vec::<u8>::with_capacity(300));
        async {}.external("payments").await.unwrap();
        drop(kept);
    };
    let work = work.budgeted("stranger", Budget::new().external_calls(0));
    let mut work = pin!(work.with_reporter((reporter, stranger.clone())));
    assert!(poll_once(work.as_mut()).is_ready());
    assert_eq!(stranger.measured(), [Some(300), Some(300), Some(0)]);
    assert!(poll_once(pin!(owner)).is_ready());
    assert_eq!(own.measured()[1], Some(1_000));
}
