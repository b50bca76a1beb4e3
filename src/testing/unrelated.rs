//! Declares that a future does not belong to a measurement that runs beside it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::meter::recording;

/// Declares that a future does not belong to any measurement that runs at the same time.
///
/// No assertion then suspects its statements, or those of tasks that it spawns, of being part of
/// the measured work. Use it for what a test runs beside a measurement, such as a background poller
/// or the preparation of data. Around the future of a task, `tokio::spawn(unrelated(poller))`, it
/// covers the whole task.
///
/// It is needed only where a failed assertion suggests it, see [what is
/// suspected](super#what-is-suspected). Inside the measured future it has no effect: statements
/// there are counted.
///
/// # Cancellation
///
/// As the future itself; its destructors are covered as well.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
/// use request_budget::{sqlx::Pool, testing::{measure, unrelated}};
/// use sqlx::SqlitePool;
///
/// let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
/// let page = measure(async {
///     let seed = tokio::spawn(unrelated({
///         let pool = pool.clone();
///         async move { sqlx::query("SELECT 'seed'").execute(&pool).await.map(drop) }
///     }));
///     seed.await.unwrap()
/// });
/// let record = page.await;
/// record.assert_queries(0);
/// record.into_output()
/// # }
/// ```
pub fn unrelated<F: Future>(future: F) -> Unrelated<F> {
    Unrelated { future: Some(future) }
}

pin_project! {
    /// The future of [`unrelated`].
    pub struct Unrelated<F> {
        // `None` once its destructors have run, which are covered as well.
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Unrelated<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            recording::unrelated(|| this.future.set(None));
        }
    }
}

impl<F: Future> Future for Unrelated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        recording::unrelated(|| {
            let future = this.future.as_mut().as_pin_mut();
            let output = ready!(future.expect("not polled again after it was done").poll(cx));
            this.future.set(None);
            Poll::Ready(output)
        })
    }
}

impl<F> fmt::Debug for Unrelated<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unrelated").finish_non_exhaustive()
    }
}
