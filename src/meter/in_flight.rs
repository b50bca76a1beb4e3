//! The commands of a unit of work that are under way.
//!
//! A command is begun in the task of its work, and its end is told in another task, late or never. So
//! the work keeps what it has begun, and settles what is left when it ends itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::recording::Recorded;
use super::table::Key;
use super::waiter::Waiter;
use crate::memory;
use crate::time::{Instant, nanos};

/// How many commands are under way in a unit of work and in what runs inside it, and which of them are
/// its own.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    count: AtomicU64,
    /// How many of them would be dropped with the work.
    held: AtomicU64,
    /// The sum of the moments at which they began, in nanoseconds after the start of the work: the time
    /// of all is then the count times the present, less the sum. May wrap, like that product.
    began: AtomicU64,
    /// When the last poll began during which any was under way.
    polled: AtomicU64,
    own: Mutex<Vec<Command>>,
    /// What waits until none would be dropped with the work.
    waiter: Waiter,
    is_awaited: AtomicBool,
}

/// One command under way.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) id: u64,
    pub(super) since: Instant,
    /// Which it is, where that is known.
    pub(super) key: Option<Key>,
    /// How many accounts hold it, counted from the innermost.
    pub(super) held_by: usize,
    pub(super) recorded: Recorded,
}

impl InFlight {
    /// Notes that a command has begun; `own` is there if no inner work began it.
    ///
    /// It is held if the futures of this work hold it, and not a task of its own that was spawned.
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

    /// The one of its own that began first: which it is, where that is known, and when it began.
    pub(super) fn oldest(&self) -> Option<(Option<Key>, Instant)> {
        let own = lock(&self.own);
        own.iter().min_by_key(|command| command.since).map(|oldest| (oldest.key, oldest.since))
    }

    /// What waits until none would be dropped with the work.
    pub(super) fn into_waiter(self) -> Waiter {
        self.waiter
    }

    /// Notes which command it is.
    pub(super) fn name(&self, id: u64, key: Key, text: &str) {
        if let Some(command) = lock(&self.own).iter_mut().find(|command| command.id == id) {
            command.key = Some(key);
            command.recorded.set_text(text);
            command.recorded.set_database(key.database());
        }
    }

    /// Notes what a command has brought.
    pub(super) fn add_rows(&self, id: u64, rows: u64) {
        if let Some(command) = lock(&self.own).iter().find(|command| command.id == id) {
            command.recorded.add_rows(rows);
        }
    }

    /// Takes a command of its own out, unless that was done before, and charges it.
    ///
    /// That is one step: whoever takes out the rest, to report the end of the work, finds this one charged.
    /// So nothing that is not ours may be called from there.
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

    /// Takes any command of its own out, and charges it.
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

    /// Lets go of a command that was held. Last, as it may end the work.
    pub(super) fn let_go(&self) {
        // Sequentially consistent with `poll_none_held`: one of the two sees what the other has stored.
        if self.held.fetch_sub(1, SeqCst) == 1 && self.is_awaited.load(SeqCst) {
            self.waiter.wake();
        }
    }

    /// Whether any would be dropped with the work.
    #[cfg(feature = "http")]
    pub(super) fn is_any_held(&self) -> bool {
        self.held.load(Relaxed) > 0
    }

    /// Whether none would be dropped with the work; if any would, the task will be woken when none is.
    pub(super) fn poll_none_held(&self, cx: &Context<'_>) -> Poll<()> {
        if self.held.load(SeqCst) > 0 {
            self.waiter.set(cx);
            self.is_awaited.store(true, SeqCst);
        }
        if self.held.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Notes that a poll begins, which may be the one that finds a command done.
    #[inline]
    pub(super) fn polled(&self, origin: Instant) {
        if self.count.load(Relaxed) > 0 {
            self.polled.store(nanos(origin.elapsed()), Relaxed);
        }
    }

    /// How long the work waited for a command that is over.
    ///
    /// Whatever keeps the thread busy after the reply was read is not the command's time, and the end is
    /// told late: so the wait ends where the last poll begins.
    pub(super) fn waited(&self, origin: Instant, since: Instant) -> Duration {
        Duration::from_nanos(self.polled.load(Relaxed).saturating_sub(after(origin, since)))
    }

    /// The time of all that is under way.
    pub(super) fn time(&self, origin: Instant) -> Duration {
        let count = self.count.load(Relaxed);
        if count == 0 {
            return Duration::ZERO;
        }
        let now = nanos(origin.elapsed()).wrapping_mul(count);
        let time = now.wrapping_sub(self.began.load(Relaxed)).cast_signed();
        // Below zero only where another thread is between its two steps.
        Duration::from_nanos(u64::try_from(time).unwrap_or(0))
    }
}

fn after(origin: Instant, at: Instant) -> u64 {
    nanos(at.saturating_duration_since(origin))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No access panics half way, so what is poisoned is whole.
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
        all.polled(origin);
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
        all.let_go();
        assert!(!woken.0.load(Relaxed));
        all.let_go();
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
        assert!(meter.polled().is_none());
        let reads = Arc::new(Reads(meter.clone(), Mutex::default()));
        let waker = Waker::from(reads.clone());
        assert!(meter.poll_commands(&Context::from_waker(&waker)).is_pending());
        meter.end_command(7);
        assert_eq!(*lock(&reads.1), Some(Duration::from_secs(2)));
    }

    /// The other may be told of the end of a command just when this one reports the end of the work.
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
            meter.polled();
            assert!(meter.poll_cut(&Context::from_waker(&waker)).is_none());
            meter.end_command(7);
            assert!(meter.cut().is_some());
            assert!(woken.0.load(Relaxed));
        }
    }
}
