//! The MongoDB commands of a unit of work that are in flight.
//!
//! A command begins in the task of its work, but the driver reports its end in another task, late
//! or never. So the work keeps the commands that it has begun, and charges those that are left when
//! it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::recording::Recorded;
use super::table::Key;
use super::waiter::Waiter;
use crate::memory;
use crate::time::{Instant, nanos};

/// How many commands are in flight in a unit of work and in the works inside of it, and which of
/// them it began itself.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    count: AtomicU64,
    /// How many of them are held by futures of the work, so that dropping it would drop them.
    held: AtomicU64,
    /// The sum of the times at which they began, in nanoseconds after the start of the work. How
    /// long all of them have taken is then the count times the present time, less this sum. May
    /// wrap, as that product may.
    began: AtomicU64,
    /// When the last poll of the work began during which any was in flight.
    polled: AtomicU64,
    own: Mutex<Vec<Command>>,
    /// The task that waits until none is held.
    waiter: Waiter,
    is_awaited: AtomicBool,
}

/// One command in flight.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) id: u64,
    pub(super) since: Instant,
    /// Its kind, if that is known.
    pub(super) key: Option<Key>,
    /// How many accounts hold it, counted from the innermost.
    pub(super) held_by: usize,
    pub(super) recorded: Recorded,
}

impl InFlight {
    /// Notes that a command has begun; `own` is given by the work that began it, not by outer ones.
    ///
    /// `is_held`: a future of this work holds the command, not a task that it spawned.
    pub(super) fn began(
        &self,
        origin: Instant,
        since: Instant,
        is_held: bool,
        own: Option<Command>,
    ) {
        self.began.fetch_add(after(origin, since), Relaxed);
        self.count.fetch_add(1, Relaxed);
        if is_held {
            self.held.fetch_add(1, SeqCst);
        }
        if let Some(command) = own {
            memory::aside(|| lock(&self.own).push(command));
        }
    }

    /// The oldest command of its own: its kind, if that is known, and when it began.
    pub(super) fn oldest(&self) -> Option<(Option<Key>, Instant)> {
        let own = lock(&self.own);
        own.iter().min_by_key(|command| command.since).map(|oldest| (oldest.key, oldest.since))
    }

    /// The task that waits until none is held.
    pub(super) fn into_waiter(self) -> Waiter {
        self.waiter
    }

    /// Sets the kind of a command.
    pub(super) fn name(&self, id: u64, key: Key, text: &str) {
        if let Some(command) = lock(&self.own).iter_mut().find(|command| command.id == id) {
            command.key = Some(key);
            command.recorded.set_text(text);
            command.recorded.set_database(key.database());
        }
    }

    /// Adds to the number of documents that a command has returned.
    pub(super) fn add_rows(&self, id: u64, rows: u64) {
        if let Some(command) = lock(&self.own).iter().find(|command| command.id == id) {
            command.recorded.add_rows(rows);
        }
    }

    /// Removes a command of its own, unless that was done before, and charges it.
    ///
    /// Both under the lock: once the end of the work has removed the rest, this one is charged. So
    /// `charge` must not call any code of the user.
    pub(super) fn take<T>(
        &self,
        id: u64,
        charge: impl FnOnce(&Command) -> T,
    ) -> Option<(Command, T)> {
        let mut own = lock(&self.own);
        let position = own.iter().position(|command| command.id == id)?;
        let command = own.swap_remove(position);
        let charged = charge(&command);
        Some((command, charged))
    }

    /// Removes any command of its own, and charges it.
    pub(super) fn take_any<T>(&self, charge: impl FnOnce(&Command) -> T) -> Option<(Command, T)> {
        let mut own = lock(&self.own);
        let command = own.pop()?;
        let charged = charge(&command);
        Some((command, charged))
    }

    /// Notes that a command has ended.
    pub(super) fn ended(&self, origin: Instant, since: Instant) {
        self.began.fetch_sub(after(origin, since), Relaxed);
        self.count.fetch_sub(1, Relaxed);
    }

    /// Notes that a held command was released. To be called last, since it may wake the work to its
    /// end.
    pub(super) fn release(&self) {
        // Sequentially consistent with `poll_none_held`: one of the two sees what the other has
        // stored.
        if self.held.fetch_sub(1, SeqCst) == 1 && self.is_awaited.load(SeqCst) {
            self.waiter.wake();
        }
    }

    /// Whether any is held, and would be dropped with the work.
    #[cfg(feature = "http")]
    pub(super) fn is_any_held(&self) -> bool {
        self.held.load(Relaxed) > 0
    }

    /// Ready if none is held; otherwise wakes the task when none is.
    pub(super) fn poll_none_held(&self, cx: &Context<'_>) -> Poll<()> {
        if self.held.load(SeqCst) > 0 {
            self.waiter.set(cx);
            self.is_awaited.store(true, SeqCst);
        }
        if self.held.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Notes that a poll of the work begins, which may find a command completed.
    #[inline]
    pub(super) fn note_poll(&self, origin: Instant) {
        if self.count.load(Relaxed) > 0 {
            self.polled.store(nanos(origin.elapsed()), Relaxed);
        }
    }

    /// How long the work waited for a command that has ended.
    ///
    /// The wait ends when the last poll begins: the driver reports the end later, and what keeps
    /// the thread busy after the reply was read is not the time of the command.
    pub(super) fn waited(&self, origin: Instant, since: Instant) -> Duration {
        Duration::from_nanos(self.polled.load(Relaxed).saturating_sub(after(origin, since)))
    }

    /// How long all commands in flight have taken by now, in all.
    pub(super) fn time(&self, origin: Instant) -> Duration {
        let count = self.count.load(Relaxed);
        if count == 0 {
            return Duration::ZERO;
        }
        let now = nanos(origin.elapsed()).wrapping_mul(count);
        let time = now.wrapping_sub(self.began.load(Relaxed)).cast_signed();
        // Negative only while another thread has done one of its two updates.
        Duration::from_nanos(u64::try_from(time).unwrap_or(0))
    }
}

fn after(origin: Instant, at: Instant) -> u64 {
    nanos(at.saturating_duration_since(origin))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No access panics midway, so what is poisoned is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    use super::*;
    use crate::budget::Budget;
    use crate::limit::Limit;
    use crate::meter::Meter;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_times_add_up() {
        let (origin, all) = (Instant::now(), InFlight::default());
        let after = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
        all.began(origin, origin, true, None);
        after(2).await;
        let second = Instant::now();
        all.began(origin, second, true, None);
        after(3).await;
        assert_eq!(all.time(origin), Duration::from_secs(5 + 3));
        all.ended(origin, origin);
        assert_eq!(all.time(origin), Duration::from_secs(3));
        all.ended(origin, second);
        assert_eq!(all.time(origin), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_where_the_last_poll_begins() {
        let (origin, all) = (Instant::now(), InFlight::default());
        let command =
            Command { id: 7, since: origin, key: None, held_by: 1, recorded: Recorded::default() };
        all.began(origin, origin, true, Some(command));
        tokio::time::advance(Duration::from_secs(2)).await;
        all.note_poll(origin);
        tokio::time::advance(Duration::from_secs(3)).await;
        let charge = |command: &Command| all.waited(origin, command.since);
        let (command, waited) = all.take(7, charge).expect("it is under way");
        assert!(all.take(7, charge).is_none());
        all.ended(origin, command.since);
        assert_eq!(waited, Duration::from_secs(2));
    }

    #[test]
    fn who_waits_is_woken_by_the_end_of_the_last() {
        let (origin, all) = (Instant::now(), InFlight::default());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        assert!(all.poll_none_held(&cx).is_ready());
        all.began(origin, origin, true, None);
        all.began(origin, origin, true, None);
        assert!(all.poll_none_held(&cx).is_pending());
        all.release();
        assert!(!woken.0.load(Relaxed));
        all.release();
        assert!(woken.0.load(Relaxed));
        assert!(all.poll_none_held(&cx).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_when_the_time_of_the_last_is_charged() {
        struct Reads(Arc<Meter>, Mutex<Option<Duration>>);

        impl Wake for Reads {
            fn wake(self: Arc<Self>) {
                *lock(&self.1) = Some(self.0.usage(Default::default()).query_time);
            }
        }

        let meter = Arc::new(Meter::new("work".into(), Budget::new(), None));
        meter.begin_command(7, |_| false);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(meter.note_poll().is_none());
        let reads = Arc::new(Reads(meter.clone(), Mutex::default()));
        let waker = Waker::from(reads.clone());
        assert!(meter.poll_commands(&Context::from_waker(&waker)).is_pending());
        meter.end_command(7);
        assert_eq!(*lock(&reads.1), Some(Duration::from_secs(2)));
    }

    /// The other may be told of the end of a command just when this one reports the end of the
    /// work.
    #[test]
    fn who_takes_the_rest_waits_for_what_is_being_charged() {
        let (origin, all) = (Instant::now(), InFlight::default());
        for id in [7, 8] {
            let recorded = Recorded::default();
            let command = Command { id, since: origin, key: None, held_by: 1, recorded };
            all.began(origin, origin, true, Some(command));
        }
        let is_locked = |_: &Command| all.own.try_lock().is_err();
        assert!(matches!(all.take(7, is_locked), Some((_, true))));
        assert!(matches!(all.take_any(is_locked), Some((_, true))));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_waits_is_woken_by_the_end_of_a_command_that_cuts_it() {
        let second = Limit::hard(Duration::from_secs(1));
        for budget in [Budget::new().query_time(second), Budget::new().slow_query(second)] {
            let meter = Meter::new("work".into(), budget, None);
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            meter.begin_command(7, |_| false);
            tokio::time::advance(Duration::from_secs(2)).await;
            // The poll that reads the reply, and waits for something else then.
            meter.note_poll();
            assert!(meter.poll_cut(&Context::from_waker(&waker)).is_none());
            meter.end_command(7);
            assert!(meter.cut().is_some());
            assert!(woken.0.load(Relaxed));
        }
    }
}
