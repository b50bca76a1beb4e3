//! The wait for a client that is not ready, which is the beginning of a call.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::external::Call;
use super::{Refusal, Timer};
use crate::memory;
use crate::meter::EndsWithWork;
use crate::scope;
use crate::time::Instant;

/// The state of the wait for a client, until the next call.
///
/// A tower service waits in `poll_ready`, before there is a request, and the caller may give up at
/// any time and keep the service. Returning an error there would mean that the service must be
/// discarded. So when the timeout has passed, the service is ready, and the call fails without
/// calling the client.
#[derive(Debug, Default)]
pub(crate) struct Readiness(State);

#[derive(Debug, Default)]
enum State {
    /// The client was ready at once, or is used outside of all units of work.
    #[default]
    Idle,
    Waiting(Arc<Wait>),
    /// The next call fails with this.
    Refused(Refusal),
}

/// A call that waits for its client; empty once its work has ended.
struct Wait {
    begun: Mutex<Option<(Call, Timer)>>,
    is_over: AtomicBool,
}

impl Readiness {
    /// Waits for a client that is not ready. Ready if the next call is to fail.
    pub(crate) fn poll_wait(&mut self, name: &str, cx: &mut Context<'_>) -> Poll<()> {
        // A service that was ready stays ready until it is called.
        if matches!(self.0, State::Refused(_)) {
            return Poll::Ready(());
        }
        if !self.is_of_current_work() {
            self.begin(name);
        }
        let State::Waiting(wait) = &self.0 else {
            return if matches!(self.0, State::Idle) { Poll::Pending } else { Poll::Ready(()) };
        };
        if !wait.is_time_up(cx) {
            return Poll::Pending;
        }
        // Empty if the work has ended at the same time in another thread: the client is still not
        // ready.
        let Some((mut call, _)) = wait.take() else { return Poll::Pending };
        let refusal = call.cut();
        self.end();
        self.0 = State::Refused(refusal);
        Poll::Ready(())
    }

    /// Notes that the client is ready after all.
    #[inline]
    pub(crate) fn client_is_ready(&mut self) {
        if matches!(self.0, State::Refused(_)) {
            self.0 = State::Idle;
        }
    }

    /// Ends the wait without a call.
    #[inline]
    pub(crate) fn end(&mut self) {
        if let State::Waiting(wait) = mem::take(&mut self.0) {
            wait.end();
            memory::aside(|| drop(wait));
        }
    }

    /// The call that has begun with a wait, if it began in this unit of work and has time left, or
    /// its refusal.
    ///
    /// If the client becomes ready after the timeout, the service was not polled in time: then the
    /// call gets the whole time again.
    #[inline]
    pub(super) fn take(&mut self) -> Option<(Result<Call, Refusal>, Timer)> {
        match mem::take(&mut self.0) {
            State::Idle => None,
            State::Refused(refusal) => Some((Err(refusal), Timer::new(None))),
            State::Waiting(wait) => {
                let begun = wait.take();
                memory::aside(|| drop(wait));
                let (call, timer) = begun?;
                let is_in_time = call.deadline().is_none_or(|deadline| Instant::now() < deadline);
                let is_ours = call.meter.as_ref().is_some_and(scope::is_current);
                (is_in_time && is_ours).then_some((Ok(call), timer))
            }
        }
    }

    fn is_of_current_work(&self) -> bool {
        let State::Waiting(wait) = &self.0 else { return false };
        let begun = wait.lock();
        begun.as_ref().is_some_and(|(call, _)| call.meter.as_ref().is_some_and(scope::is_current))
    }

    /// Begins a call, if a unit of work is running here.
    fn begin(&mut self, name: &str) {
        self.end();
        let Some(meter) = scope::current() else { return };
        self.0 = match Call::begin_timed(name) {
            (Ok(call), timer) => {
                let begun = Mutex::new(Some((call, timer)));
                let is_over = AtomicBool::new(false);
                let wait = memory::aside(|| Arc::new(Wait { begun, is_over }));
                let weak = Arc::downgrade(&wait);
                meter.end_with_work(weak);
                State::Waiting(wait)
            }
            (Err(refusal), _) => State::Refused(refusal),
        };
    }
}

impl Drop for Readiness {
    #[inline]
    fn drop(&mut self) {
        self.end();
    }
}

impl Wait {
    fn is_time_up(&self, cx: &mut Context<'_>) -> bool {
        // Not under the lock: replacing a waker may drop a task, and that may end this very work.
        let Some((call, mut timer)) = self.take() else { return false };
        let is_up = Pin::new(&mut timer).poll_elapsed(cx);
        *self.lock() = Some((call, timer));
        if self.is_over.load(Relaxed) {
            drop(self.take());
        }
        is_up
    }

    fn take(&self) -> Option<(Call, Timer)> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Call, Timer)>> {
        // Nothing panics midway, so a poisoned wait is whole.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndsWithWork for Wait {
    fn end(&self) {
        self.is_over.store(true, Relaxed);
        drop(self.take());
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").finish_non_exhaustive()
    }
}
