//! Wraps the measured future to record who wakes it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;

use crate::memory;
use crate::meter::Meter;
use crate::meter::recording::Recording;

pin_project! {
    /// Records who wakes a future while nothing that is counted is in flight.
    pub(super) struct Watched<F> {
        #[pin]
        future: F,
        meter: Arc<Meter>,
        recording: Arc<Recording>,
        noting: Option<Arc<Noting>>,
    }
}

/// Records who wakes the future, then wakes it.
struct Noting {
    waker: Waker,
    /// Weak, because a waker that somebody keeps must not keep the recording alive.
    recording: Weak<Recording>,
    /// The future is waiting, and nothing that is counted is in flight.
    is_idle: AtomicBool,
}

impl<F> Watched<F> {
    pub(super) fn new(future: F, meter: Arc<Meter>, recording: Arc<Recording>) -> Self {
        Self { future, meter, recording, noting: None }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let noting = match this.noting {
            Some(noting) if noting.waker.will_wake(cx.waker()) => noting.clone(),
            _ => memory::aside(|| {
                let (waker, recording) = (cx.waker().clone(), Arc::downgrade(this.recording));
                let noting = Arc::new(Noting { waker, recording, is_idle: AtomicBool::new(false) });
                this.noting.insert(noting).clone()
            }),
        };
        noting.is_idle.store(false, Relaxed);
        let waker = Waker::from(noting.clone());
        let mut noted = Context::from_waker(&waker);
        let (polled, is_idle) =
            this.recording.watch(|| this.future.poll(&mut noted), Poll::is_pending);
        noting.is_idle.store(is_idle && !this.meter.has_commands_in_flight(), Relaxed);
        polled
    }
}

impl Wake for Noting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_idle.load(Relaxed)
            && let Some(recording) = self.recording.upgrade()
        {
            recording.note_wake();
            memory::aside(|| drop(recording));
        }
        self.waker.wake_by_ref();
    }
}
