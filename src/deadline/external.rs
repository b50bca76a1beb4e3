//! Calls to external systems: counted, timed and bounded.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

#[cfg(feature = "http")]
use super::Readiness;
use super::{Refusal, Timer};
use crate::budget::NONE;
use crate::error::Cut;
use crate::key::Key;
use crate::meter::recording::{Kind, Recorded};
use crate::meter::{Meter, Suspect};
use crate::resource::Resource;
use crate::scope;
use crate::time::{Instant, nanos};
use crate::violation::Severity;

pin_project! {
    /// The future of [`external`](crate::ExternalExt::external).
    pub struct External<F> {
        #[pin]
        future: Option<F>,
        name: Cow<'static, str>,
        // `None` before the first poll, unless the call has begun before.
        call: Option<Result<Call, Refusal>>,
        #[pin]
        timer: Timer,
    }
}

impl<F> External<F> {
    pub(crate) fn new(future: F, name: Cow<'static, str>) -> Self {
        Self { future: Some(future), name, call: None, timer: Timer::new(None) }
    }

    /// A call that begins now, or has begun with the wait for the client. `make` is called unless
    /// it is refused.
    #[cfg(feature = "http")]
    pub(crate) fn begun(
        name: Cow<'static, str>,
        wait: &mut Readiness,
        make: impl FnOnce() -> F,
    ) -> Self {
        let (call, timer) = wait.take().unwrap_or_else(|| Call::begin_timed(&name));
        let future = call.is_ok().then(make);
        Self { future, name, call: Some(call), timer }
    }
}

impl<F: Future> Future for External<F> {
    type Output = Result<F::Output, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.call.is_none() {
            let (call, timer) = Call::begin_timed(this.name);
            this.timer.set(timer);
            *this.call = Some(call);
        }
        if let Ok(call) = this.call.as_mut().expect("begun above") {
            let future = this.future.as_mut().as_pin_mut();
            match future.expect("not polled again after it was done").poll(cx) {
                Poll::Ready(output) => {
                    this.future.set(None);
                    this.timer.set(Timer::new(None));
                    call.end();
                    return Poll::Ready(Ok(output));
                }
                Poll::Pending if this.timer.as_mut().poll_elapsed(cx) => {
                    // The future is ended from outside: if it executes a statement, the connection
                    // is cleaned or closed.
                    call.abandon(|| this.future.set(None));
                    this.timer.set(Timer::new(None));
                    let refusal = call.cut();
                    *this.call = Some(Err(refusal));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        match this.call {
            Some(Err(refusal)) => {
                this.future.set(None);
                refusal.poll_cut(cx).map(Err)
            }
            _ => Poll::Pending,
        }
    }
}

impl<F> fmt::Debug for External<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("External").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A call that includes the body of its response. Its time is charged when it ends, in whichever
/// way.
#[cfg(any(feature = "aws", feature = "reqwest-middleware"))]
pub(crate) struct LongCall {
    call: Call,
    timer: Timer,
    is_over: bool,
    refusal: Option<Refusal>,
}

#[cfg(any(feature = "aws", feature = "reqwest-middleware"))]
impl LongCall {
    /// Counts a call, unless that is refused.
    pub(crate) async fn begin(name: &str) -> Result<Self, Cut> {
        let call = match Call::begin(name) {
            Ok(call) => call,
            Err(refusal) => return Err(refusal.await),
        };
        Ok(Self { timer: Timer::new(call.deadline()), call, is_over: false, refusal: None })
    }

    /// Polls a piece of the call, then checks the timeout.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        piece: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Cut>> {
        if let Some(refusal) = &mut self.refusal {
            return refusal.poll_cut(cx).map(Err);
        }
        match piece(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if !self.is_over && Pin::new(&mut self.timer).poll_elapsed(cx) => {
                self.is_over = true;
                let refusal = self.call.cut();
                self.refusal.insert(refusal).poll_cut(cx).map(Err)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Charges the call, which has ended.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        self.call.end();
    }
}

/// One call in flight. Its time is charged when it ends, in whichever way.
pub(super) struct Call {
    /// The work that makes the call, until the call has ended.
    pub(super) meter: Option<Arc<Meter>>,
    key: Key,
    started: Instant,
    timeout: Option<Duration>,
    recorded: Recorded,
}

impl Call {
    /// Begins a call, unless that is refused, and sets its timer.
    pub(super) fn begin_timed(name: &str) -> (Result<Self, Refusal>, Timer) {
        let call = Self::begin(name);
        let timer = Timer::new(call.as_ref().ok().and_then(Self::deadline));
        (call, timer)
    }

    fn begin(name: &str) -> Result<Self, Refusal> {
        let meter = scope::current();
        let (key, started) = (Key::of(name), Instant::now());
        if let Some(meter) = &meter {
            meter.take(Resource::ExternalCalls, Suspect::External(key)).map_err(Refusal::new)?;
            let pending = scope::allocated_in_poll();
            for meter in meter.chain() {
                meter.count_external(key, name);
                meter.begin_call_wait(key, started, pending);
            }
        }
        let timeout = meter.as_ref().and_then(|meter| {
            let timeout = meter.external_timeout(key)?;
            Some(meter.remaining_time().map_or(timeout, |left| left.min(timeout)))
        });
        let record = |meter: &Arc<Meter>| meter.record(Kind::External, Some(name));
        let recorded = meter.as_ref().map(record).unwrap_or_default();
        recorded.open();
        Ok(Self { key, started, timeout, meter, recorded })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.started.checked_add(self.timeout?)
    }

    fn end(&mut self) {
        let Some(meter) = self.meter.take() else { return };
        let (time, pending) = (self.started.elapsed(), scope::allocated_in_poll());
        self.recorded.add_time(time);
        for meter in meter.chain() {
            meter.end_call_wait(self.key, pending);
            meter.add_external_time(self.key, time);
        }
    }

    fn abandon(&self, destructors: impl FnOnce()) {
        match &self.meter {
            Some(meter) => meter.while_abandoned(destructors),
            None => destructors(),
        }
    }

    /// Ends the call because its timeout has passed.
    ///
    /// If there was no time at all, the refusal yields first: the call has not been waited for.
    pub(super) fn cut(&mut self) -> Refusal {
        let meter = self.meter.clone();
        let time = nanos(self.started.elapsed());
        self.end();
        let meter = meter.expect("only a unit of work limits a call");
        let limit = self.timeout.map_or(0, nanos);
        let suspect = Suspect::External(self.key);
        let resource = Resource::ExternalTimeout;
        // Only the works with the tightest limit have crossed it.
        let tightest = meter.external_timeout(self.key).map_or(NONE, nanos);
        let limiting =
            || meter.chain().filter(|m| m.limits().external_timeout(self.key) == tightest);
        for meter in limiting() {
            // Counts as crossed even if less than the limit was left until the deadline of the
            // work.
            meter.cross_hard(resource, time, limit, suspect);
        }
        let limited = limiting().next();
        let limited = limited.as_deref().unwrap_or(&meter);
        let cut = Cut::new(limited.violation(resource, Severity::Hard, time, limit, suspect));
        if limit > 0 {
            return Refusal::of_waited(cut);
        }
        meter.count_refusal();
        Refusal::new(cut)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end();
    }
}
