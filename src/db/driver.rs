//! Marks the polls in which a driver, or a pool, works for a metered connection.

#[cfg(feature = "witness")]
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

#[cfg(feature = "witness")]
use crate::meter::recording::for_library;
use crate::meter::recording::touch;
#[cfg(feature = "witness")]
use crate::meter::table::By;

#[cfg(feature = "witness")]
thread_local! {
    static RUNNING: Cell<Option<By>> = const { Cell::new(None) };
}

/// For what a driver, or a pool, is at work on this thread right now on our behalf, if one is.
///
/// Drivers ask the server things of their own (PostgreSQL's, for types that it does not know):
/// these are nobody's bypass.
#[cfg(feature = "witness")]
pub(crate) fn running() -> Option<By> {
    RUNNING.get()
}

/// Runs a poll in which a driver executes a statement of the work.
#[cfg(feature = "witness")]
#[inline]
pub(super) fn run<T>(piece: impl FnOnce() -> T) -> T {
    let _span = super::events::enter_metered();
    run_by(By::MeteredDriver, piece)
}

/// Runs a poll in which a pool or a driver does something for itself.
#[cfg(feature = "witness")]
fn run_itself<T>(piece: impl FnOnce() -> T) -> T {
    let _span = super::events::enter_itself();
    run_by(By::Itself, piece)
}

#[cfg(feature = "witness")]
#[inline]
fn run_by<T>(by: By, piece: impl FnOnce() -> T) -> T {
    struct Restore(Option<By>);

    impl Drop for Restore {
        #[inline]
        fn drop(&mut self) {
            RUNNING.set(self.0);
        }
    }

    let _restore = Restore(RUNNING.replace(Some(by)));
    for_library(piece)
}

/// Runs a poll of a driver. Without the feature `witness` nothing reads the mark.
#[cfg(not(feature = "witness"))]
#[inline]
pub(super) fn run<T>(piece: impl FnOnce() -> T) -> T {
    piece()
}

#[cfg(not(feature = "witness"))]
use run as run_itself;

pin_project! {
    /// A future of a driver, or of a pool.
    ///
    /// Its destructor is marked as well, because sqlx emits the event of a statement that is
    /// dropped midway there.
    pub(super) struct Driver<F> {
        // `None` once it has completed.
        #[pin]
        future: Option<F>,
        is_for_itself: bool,
    }

    impl<F> PinnedDrop for Driver<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                run_for(*this.is_for_itself, || this.future.set(None));
            }
        }
    }
}

impl<F> Driver<F> {
    /// Wraps the future in which a driver executes a statement of the work.
    #[inline]
    pub(super) fn new(future: F) -> Self {
        Self { future: Some(future), is_for_itself: false }
    }

    /// Wraps what a pool or a driver does besides the statements of the work: the hooks of the pool
    /// (`after_connect`, `before_acquire`), and what it executes to prepare or describe a
    /// statement.
    ///
    /// These statements belong to no work: they are neither counted nor unmetered.
    #[inline]
    pub(super) fn for_itself(future: F) -> Self {
        Self { future: Some(future), is_for_itself: true }
    }
}

#[inline]
fn run_for<T>(itself: bool, piece: impl FnOnce() -> T) -> T {
    if itself { run_itself(piece) } else { run(piece) }
}

impl<F: Future> Future for Driver<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let polled = run_for(*this.is_for_itself, || {
            let future = this.future.as_mut().as_pin_mut();
            let polled = future.expect("not polled again after it was done").poll(cx);
            if polled.is_ready() {
                this.future.set(None);
            }
            polled
        });
        if polled.is_pending() {
            touch();
        }
        polled
    }
}
