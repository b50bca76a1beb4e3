//! A future that is not left where it yields.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

/// Polls a future again, in the same poll, when it has woken its task meanwhile.
///
/// What is refused yields, and the work is cut there. In this it comes to see the refusal first, as
/// a task does that was carried along.
pub(crate) async fn insistent<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| poll(future.as_mut(), cx)).await
}

fn poll<F: Future>(mut future: Pin<&mut F>, cx: &Context<'_>) -> Poll<F::Output> {
    let noted = Arc::new(Noted { is_woken: AtomicBool::new(false), waker: cx.waker().clone() });
    let waker = Waker::from(Arc::clone(&noted));
    loop {
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() || !noted.is_woken.swap(false, SeqCst) {
            return polled;
        }
    }
}

struct Noted {
    is_woken: AtomicBool,
    waker: Waker,
}

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, SeqCst);
        self.waker.wake_by_ref();
    }
}
