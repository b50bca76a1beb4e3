//! A future, or a closure, that is charged to the unit of work in which it was made, wherever it
//! runs.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::current::{Entered, current};
use crate::meter::Meter;
use crate::meter::recording::Carry;

thread_local! {
    /// The account that the carried future is charged to which this thread is polling now. Null if
    /// there is none, or if the future is polled by its own work, which charges it anyway.
    static CARRIED: Cell<*const Meter> = const { Cell::new(ptr::null()) };
}

/// Whether the code that runs on this thread is charged to this account but is not part of the
/// future of its work: it runs in a task that was spawned by that work.
#[cfg(feature = "mongodb")]
pub(crate) fn is_carried(meter: &Meter) -> bool {
    ptr::eq(CARRIED.get(), meter)
}

/// Guard: the scope of the work that a carried future or closure is charged to, entered on this
/// thread.
struct EnteredCarried<'a> {
    _entered: Entered<'a>,
    before: *const Meter,
}

impl<'a> EnteredCarried<'a> {
    fn new(slot: &'a mut Option<Arc<Meter>>) -> Self {
        let meter = slot.as_ref().map_or(ptr::null(), Arc::as_ptr);
        let runs_here =
            current().is_some_and(|outer| outer.chain().any(|open| ptr::eq(&*open, meter)));
        let carried = if runs_here { CARRIED.get() } else { meter };
        Self { _entered: Entered::new(slot), before: CARRIED.replace(carried) }
    }
}

impl Drop for EnteredCarried<'_> {
    fn drop(&mut self) {
        CARRIED.set(self.before);
    }
}

pin_project! {
    /// The future of [`in_current_budget`](crate::BudgetExt::in_current_budget).
    pub struct InCurrentBudget<F> {
        // `None` once it has completed: its destructors also have to run inside the scope.
        #[pin]
        future: Option<F>,
        meter: Option<Arc<Meter>>,
        carry: Carry,
    }

    impl<F> PinnedDrop for InCurrentBudget<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _entered = EnteredCarried::new(this.meter);
            this.future.set(None);
        }
    }
}

impl<F> InCurrentBudget<F> {
    pub(crate) fn new(future: F) -> Self {
        let meter = current();
        meter.iter().for_each(|meter| meter.share());
        let carry = Carry::of(meter.as_deref());
        Self { future: Some(future), meter, carry }
    }

    /// Charges a future to this work.
    #[cfg(feature = "testing")]
    pub(crate) fn of(meter: Option<Arc<Meter>>, future: F) -> Self {
        Self { future: Some(future), meter, carry: Carry::default() }
    }
}

/// Runs `piece` inside the scope of this work, if there is any.
#[cfg(all(feature = "testing", feature = "http"))]
pub(crate) fn within<T>(meter: &mut Option<Arc<Meter>>, piece: impl FnOnce() -> T) -> T {
    let _entered = Entered::new(meter);
    piece()
}

impl<F: Future> Future for InCurrentBudget<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let entered = EnteredCarried::new(this.meter);
        let future = this.future.as_mut().as_pin_mut();
        let output = ready!(future.expect("not polled again after it was done").poll(cx));
        this.future.set(None);
        drop(entered);
        *this.carry = Carry::default();
        Poll::Ready(output)
    }
}

/// A closure that is called, or dropped, inside the unit of work in which this was made.
pub(crate) struct Carried<F> {
    closure: Option<F>,
    meter: Option<Arc<Meter>>,
    _carry: Carry,
}

impl<F> Carried<F> {
    pub(crate) fn new(closure: F) -> Self {
        let meter = current();
        meter.iter().for_each(|meter| meter.share());
        let carry = Carry::of(meter.as_deref());
        Self { closure: Some(closure), meter, _carry: carry }
    }

    pub(crate) fn call<T>(self) -> T
    where
        F: FnOnce() -> T,
    {
        self.call_by(|closure| closure())
    }

    /// Passes the closure to `call`, which calls it with its arguments.
    pub(crate) fn call_by<T>(mut self, call: impl FnOnce(F) -> T) -> T {
        let closure = self.closure.take().expect("called once, by value");
        let _entered = EnteredCarried::new(&mut self.meter);
        call(closure)
    }
}

impl<F> Drop for Carried<F> {
    fn drop(&mut self) {
        let _entered = EnteredCarried::new(&mut self.meter);
        self.closure = None;
    }
}

impl<F> fmt::Debug for InCurrentBudget<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InCurrentBudget").finish_non_exhaustive()
    }
}
