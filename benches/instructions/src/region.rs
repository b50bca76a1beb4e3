//! The stretch of the program in which instructions are counted.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Polls a future to its end; each poll is counted.
pub async fn counted<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let mut polled = Poll::Pending;
        enter(&mut || polled = future.as_mut().poll(cx));
        polled
    })
    .await
}

/// callgrind counts while this function is on the stack: `run` knows it by its name.
#[inline(never)]
fn enter(piece: &mut dyn FnMut()) {
    piece();
    // What comes last must not be a jump, which would leave the function before the piece begins.
    std::hint::black_box(());
}
