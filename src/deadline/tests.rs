//! What a timer promises, whichever runtime rings it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::Timer;
use super::table::Alarm;
use crate::time::Instant;

const TICK: Duration = Duration::from_millis(5);
const MILLISECOND: Duration = Duration::from_millis(1);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn after(time: Duration) -> Timer {
    Timer::new(Instant::now().checked_add(time))
}

/// Waits until the timer rings; how long that took.
async fn ring(mut timer: Timer) -> Duration {
    let since = Instant::now();
    poll_fn(|cx| match Pin::new(&mut timer).poll_elapsed(cx) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
    since.elapsed()
}

/// Whether an alarm is known, one poll later, to be that of the task that is polled then.
async fn alarm_is_known_again() -> bool {
    let at = Instant::now().checked_add(ms(1_000)).expect("is no time of the clock");
    let mut alarm = None;
    poll_fn(|cx| match &alarm {
        None => {
            alarm = Alarm::set(at, Instant::now(), cx.waker());
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Some(alarm) => Poll::Ready(alarm.is_waiting_for(cx.waker())),
    })
    .await
}

/// In a debug build the wakers of a runtime do not differ from their clones, so that is tried in
/// the next test.
#[test]
fn an_alarm_is_set_once_and_not_at_each_poll() {
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let runtime = builder.enable_all().build().expect("a runtime");
        assert!(runtime.block_on(alarm_is_known_again()));
        let spawned = runtime.spawn(alarm_is_known_again());
        assert!(runtime.block_on(spawned).expect("does not panic"));
    }
}

fn is_elapsed(timer: &mut Timer, waker: &Waker) -> bool {
    Pin::new(timer).poll_elapsed(&mut Context::from_waker(waker))
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("builds")
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Counter {
    fn woken(&self) -> usize {
        self.0.load(Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_deadline_is_met_to_the_millisecond() {
    for milliseconds in [0, 1, 7, 300, 86_400_000] {
        let took = ring(after(ms(milliseconds))).await;
        assert!(took >= ms(milliseconds) && took <= ms(milliseconds) + MILLISECOND, "{took:?}");
        // The next one is not within a tick of it.
        tokio::time::advance(TICK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_none_rings_early_and_none_more_than_a_tick_late() {
    let tasks: Vec<_> = (0..500)
        .map(|n: u64| (ms(n * 7_919 % 1_000), n))
        .map(|(time, _)| (time, tokio::spawn(ring(after(time)))))
        .collect();
    for (time, task) in tasks {
        let took = task.await.expect("rings");
        assert!(took >= time && took <= time + TICK + MILLISECOND, "{took:?} for {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_deadline_does_not_wait_for_a_late_one_set_before() {
    let late = tokio::spawn(ring(after(ms(60_000))));
    tokio::task::yield_now().await;
    let early = ring(after(ms(100))).await;
    assert!(early <= ms(100) + MILLISECOND, "{early:?}");
    assert!(late.await.expect("rings") <= ms(60_000) + MILLISECOND);
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_wakes_nobody() {
    let counter = Arc::new(Counter::default());
    let waker = Waker::from(counter.clone());
    let mut timers: Vec<_> = (1..100).map(|n| after(ms(n))).collect();
    for timer in &mut timers {
        assert!(!is_elapsed(timer, &waker));
    }
    let mut last = timers.pop().expect("there are many");
    drop(timers);
    tokio::time::sleep(ms(200)).await;
    assert_eq!(counter.woken(), 1);
    assert!(is_elapsed(&mut last, &waker));
}

#[tokio::test(start_paused = true)]
async fn the_task_that_polled_last_is_woken() {
    let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
    let mut timer = after(ms(50));
    for counter in &counters {
        assert!(!is_elapsed(&mut timer, &Waker::from(counter.clone())));
    }
    tokio::time::sleep(ms(100)).await;
    assert_eq!(counters.map(|counter| counter.woken()), [0, 1]);
}

#[test]
fn a_runtime_that_nobody_drives_holds_up_no_other() {
    let (idle, other) = (current_thread(), current_thread());
    // This thread has a table of the idle one now.
    let mut stuck = after(ms(60_000));
    idle.block_on(async { assert!(!is_elapsed(&mut stuck, Waker::noop())) });
    assert!(other.block_on(ring(after(ms(20)))) >= ms(20));
    // And back again, with the first one as it was.
    assert!(idle.block_on(ring(after(ms(20)))) >= ms(20));
    assert!(!is_elapsed(&mut stuck, Waker::noop()));
}

#[test]
fn a_deadline_outlives_the_runtime_that_it_was_set_in() {
    let first = current_thread();
    let counter = Arc::new(Counter::default());
    let mut timer = after(ms(20));
    first.block_on(async { assert!(!is_elapsed(&mut timer, &Waker::from(counter.clone()))) });
    drop(first);
    // Told to look for another one.
    assert_eq!(counter.woken(), 1);
    current_thread().block_on(ring(timer));
}

#[test]
fn a_deadline_goes_along_to_another_runtime() {
    let (idle, other) = (current_thread(), current_thread());
    let mut timer = after(ms(20));
    idle.block_on(async { assert!(!is_elapsed(&mut timer, Waker::noop())) });
    assert!(other.block_on(ring(timer)) <= ms(60_000));
}

#[test]
fn threads_of_one_runtime_ring_for_each_other() {
    let runtime =
        Builder::new_multi_thread().worker_threads(3).enable_time().build().expect("builds");
    let tasks: Vec<_> = (0..200).map(|n| (n, runtime.spawn(ring(after(ms(n % 40)))))).collect();
    for (n, task) in tasks {
        // From before the task ran.
        let took = runtime.block_on(task).expect("rings");
        assert!(took + ms(40) >= ms(n % 40));
    }
}

#[test]
fn threads_that_are_gone_leave_their_deadlines() {
    let runtime = current_thread();
    let counter = Arc::new(Counter::default());
    let mut timer = after(ms(20));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _entered = runtime.enter();
            assert!(!is_elapsed(&mut timer, &Waker::from(counter.clone())));
        });
    });
    runtime.block_on(async {
        let mut end = pin!(ring(after(ms(40))));
        poll_fn(|cx| end.as_mut().poll(cx)).await;
    });
    assert_eq!(counter.woken(), 1);
    // Its thread is gone, so is its task; this thread's own is left.
    let left =
        runtime.block_on(async { tokio::runtime::Handle::current().metrics().num_alive_tasks() });
    assert_eq!(left, 1);
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting_for_it() {
    let runtime = current_thread();
    let handle = runtime.handle().clone();
    drop(runtime);
    let _entered = handle.enter();
    let mut timer = after(ms(1));
    let since = Instant::now();
    // No timer rings here any more; each poll looks at the clock.
    while !is_elapsed(&mut timer, Waker::noop()) {
        std::thread::yield_now();
    }
    assert!(since.elapsed() <= ms(60_000));
}

/// Runs its task at once where it is woken, which waits for a deadline as well.
struct Inline;

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        assert!(!is_elapsed(&mut after(ms(20)), Waker::noop()));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_woken_may_set_a_deadline() {
    // Due when it is set, so woken there and then.
    let now = Instant::now();
    let alarm = Alarm::set(now, now, &Waker::from(Arc::new(Inline)));
    assert!(alarm.is_some());
}

/// Cannot wake its task.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics")
    }
}

#[test]
fn a_waker_that_panics_takes_no_other_with_it() {
    let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("builds");
    // The first ring together, the others when their runtime is gone.
    let mut timers = [after(ms(50)), after(ms(50)), after(ms(60_000)), after(ms(60_000))];
    runtime.block_on(async {
        let wakers = counters.iter().flat_map(|c| [Arc::new(Broken).into(), c.clone().into()]);
        for (timer, waker) in timers.iter_mut().zip(wakers) {
            assert!(!is_elapsed(timer, &waker));
        }
        tokio::time::sleep(ms(100)).await;
    });
    assert_eq!(counters.each_ref().map(|counter| counter.woken()), [1, 0]);
    drop(runtime);
    assert_eq!(counters.map(|counter| counter.woken()), [1, 1]);
}

#[test]
fn a_runtime_without_timers_is_asked_for_one_once() {
    // That cannot be asked without a panic that is caught, which prints.
    let panics = Arc::new(AtomicUsize::new(0));
    let (forward, here) = (std::panic::take_hook(), std::thread::current().id());
    std::panic::set_hook(Box::new({
        let panics = panics.clone();
        move |panic| {
            panics.fetch_add(usize::from(std::thread::current().id() == here), Relaxed);
            forward(panic);
        }
    }));
    let runtime = Builder::new_current_thread().build().expect("builds");
    runtime.block_on(async {
        let mut timers = [after(ms(60_000)), after(ms(60_000))];
        for _ in 0..3 {
            assert!(!timers.iter_mut().any(|timer| is_elapsed(timer, Waker::noop())));
        }
    });
    assert_eq!(panics.load(Relaxed), 1);
    // The next one is asked.
    assert!(current_thread().block_on(ring(after(ms(20)))) >= ms(20));
}
