//! Whether a driver is at work here for a metered connection.

#[cfg(feature = "witness")]
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

#[cfg(feature = "witness")]
use crate::meter::recording::for_library;
use crate::meter::recording::touch;

#[cfg(feature = "witness")]
thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether what happens on this thread right now is done by a driver on our behalf.
///
/// Drivers ask the server things of their own (PostgreSQL's, for types that it does not know): these are
/// nobody's bypass.
#[cfg(feature = "witness")]
pub(crate) fn is_running() -> bool {
    RUNNING.get()
}

/// Runs a piece of a driver's work.
#[cfg(feature = "witness")]
#[inline]
pub(super) fn run<T>(piece: impl FnOnce() -> T) -> T {
    struct Restore(bool);

    impl Drop for Restore {
        #[inline]
        fn drop(&mut self) {
            RUNNING.set(self.0);
        }
    }

    let _span = super::events::enter_metered();
    let _restore = Restore(RUNNING.replace(true));
    for_library(piece)
}

/// Runs a piece of a driver's work; nobody asks for whom.
#[cfg(not(feature = "witness"))]
#[inline]
pub(super) fn run<T>(piece: impl FnOnce() -> T) -> T {
    piece()
}

pin_project! {
    /// A future of a driver.
    pub(super) struct Driver<F> {
        #[pin]
        pub(super) future: F,
    }
}

impl<F: Future> Future for Driver<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = run(|| self.project().future.poll(cx));
        if polled.is_pending() {
            touch();
        }
        polled
    }
}
