//! Memory, through the allocator of this program.

use std::future::poll_fn;
use std::hint::black_box;
use std::task::Poll;

use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, Limit, Resource, Usage, task};

use crate::Ledger;

const KIB: usize = 1024;

/// As many bytes, of which the compiler knows nothing.
fn bytes(count: usize) -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(count)))
}

/// Ends a poll, and allocates nothing for it.
async fn next_poll() {
    let mut is_next = false;
    poll_fn(|context| match std::mem::replace(&mut is_next, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peak_gross_and_net_are_exact_to_the_byte() {
    let ledger = Ledger::default();
    let work = async {
        let kept = bytes(5 * KIB);
        next_poll().await;
        drop(bytes(64 * KIB));
        next_poll().await;
        let mut grown = bytes(KIB);
        grown.reserve_exact(3 * KIB);
        drop(black_box(grown));
        kept
    };
    let work = work.budgeted("hog", Budget::new().memory(60 << 10)).with_reporter(ledger.clone());
    let kept = tokio::spawn(work).await.expect("no panic").expect("a soft limit");
    let (_, outcome, usage) = ledger.end();
    assert_eq!(outcome, Outcome::Ok);
    assert_eq!((usage.memory, usage.retained), (Some(69 << 10), Some(5 << 10)), "{usage:?}");
    assert_eq!(usage.allocated, Some(72 << 10));
    let [said] = <[String; 1]>::try_from(ledger.violations()).expect("one violation");
    assert!(said.starts_with("hog: 69.0 KiB of memory at peak, limit 60.0 KiB"), "{said}");
    drop(kept);
}

#[tokio::test]
async fn work_past_a_hard_limit_is_cut_at_the_next_poll() {
    let work = async {
        let held = bytes(2 << 20);
        next_poll().await;
        drop(held);
        "not cut"
    };
    let cut = work.budgeted("hog", Budget::new().memory(Limit::hard(1 << 20))).await;
    assert_eq!(cut.expect_err("it holds too much").violation().resource, Resource::Memory);
}

#[tokio::test]
async fn what_a_carried_task_allocates_is_charged_and_what_others_do_is_not() {
    let work = async {
        let others = tokio::spawn(async { drop(bytes(128 * KIB)) });
        task::spawn(async { drop(bytes(256 * KIB)) }).await.expect("no panic");
        others.await.expect("no panic");
        Usage::current().expect("it runs in a unit of work")
    };
    let usage = work.budgeted("parent", Budget::new()).await.expect("no limit");
    let peak = usage.memory.expect("the allocator is installed");
    assert!((256 << 10..272 << 10).contains(&peak), "{peak}");
}
