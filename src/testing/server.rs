//! Measures what a server in the same process does in tasks of its own.

use std::fmt;
use std::future::poll_fn;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::measure::Measurement;
use super::record::{Record, Served};
use crate::deadline::Timer;
use crate::meter::Meter;
use crate::scope::{self, InCurrentBudget};
use crate::time::Instant;

/// Measures what a server in the same process does for the client that is measured.
///
/// A server takes requests in tasks of its own, where the scope of the client is lost. Put the
/// [layer](Self::layer) around the whole service, outside of its `BudgetLayer`. While
/// [`measure`](Self::measure) runs, everything that the service does is recorded, the bodies of its
/// responses included. At other times the layer only passes requests on.
///
/// Make one for each test and each server, because everything that the server does at that time
/// counts. If no request came through the layer, an assertion on queries fails, since the layer may
/// have been forgotten.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// use axum::{Router, extract::State, routing::get};
/// use request_budget::{Budget, BudgetLayer, sqlx::Pool, testing::Recorder};
/// use sqlx::{Sqlite, SqlitePool};
///
/// async fn hello(State(pool): State<Pool<Sqlite>>) -> String {
///     sqlx::query_scalar("SELECT 'hello'").fetch_one(&pool).await.unwrap()
/// }
///
/// let recorder = Recorder::new();
/// let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await.unwrap());
/// let app = Router::new()
///     .route("/", get(hello))
///     .with_state(pool)
///     .layer(BudgetLayer::new(Budget::new()))
///     .layer(recorder.layer());
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let url = format!("http://{}/", listener.local_addr()?);
/// tokio::spawn(async { axum::serve(listener, app).await });
///
/// let record = recorder.measure(async { reqwest::get(url).await?.text().await }).await;
/// record.assert_queries(1);
/// assert_eq!(record.into_output().unwrap(), "hello");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Arc<Meter>>,
    /// How many requests have come in while it was running.
    requests: usize,
    /// Requests that have not ended yet.
    open: usize,
    waiting: Option<Waker>,
}

impl Recorder {
    /// How long to wait for the server to finish requests whose response the client has received.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// Creates a recorder that measures nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The layer that adds requests to the measurement that is running.
    #[must_use]
    pub fn layer(&self) -> RecorderLayer {
        RecorderLayer { recorder: self.clone() }
    }

    /// Runs the future of a client and records everything that it and the server do.
    ///
    /// Waits afterwards, for at most five seconds, until the server has finished the requests that
    /// came in meanwhile. If it has not, a failed assertion mentions that.
    ///
    /// # Panics
    ///
    /// The future panics if another measurement of this recorder is running, since a request could
    /// not be attributed to one of them.
    #[track_caller]
    pub fn measure<F: Future>(&self, future: F) -> impl Future<Output = Record<F::Output>> {
        let here = Location::caller();
        async move {
            let measurement = Measurement::start::<F>(here);
            let running = Running::begin(self, &measurement.meter);
            let output = measurement.run(future).await;
            drop(running);
            let unfinished = self.settle().await;
            let requests = self.lock().requests;
            measurement.end(output, Some(Served { requests, unfinished }))
        }
    }

    async fn settle(&self) -> usize {
        let mut timer = pin!(Timer::new(Instant::now().checked_add(Self::PATIENCE)));
        poll_fn(|cx| {
            {
                let mut state = self.lock();
                if state.open == 0 {
                    return Poll::Ready(0);
                }
                state.waiting = Some(cx.waker().clone());
            }
            match timer.as_mut().poll_elapsed(cx) {
                true => Poll::Ready(self.lock().open),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Notes a request that comes in; returns what it is charged to, if a measurement is running.
    fn enter(&self) -> Option<(Arc<Meter>, Open)> {
        let mut state = self.lock();
        let meter = state.running.clone()?;
        meter.share();
        state.requests = state.requests.saturating_add(1);
        state.open = state.open.saturating_add(1);
        Some((meter, Open(self.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No access panics midway, so a poisoned state is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A measurement that is running, until dropped.
struct Running<'a>(&'a Recorder);

impl<'a> Running<'a> {
    fn begin(recorder: &'a Recorder, meter: &Arc<Meter>) -> Self {
        let mut state = recorder.lock();
        let is_free = state.running.is_none();
        if is_free {
            state.running = Some(meter.clone());
            state.requests = 0;
        }
        drop(state);
        assert!(is_free, "a recorder runs one measurement at a time: make one for each test");
        Self(recorder)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let meter = self.0.lock().running.take();
        drop(meter);
    }
}

/// A request that has not ended, until this is dropped.
#[derive(Debug)]
struct Open(Recorder);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open = state.open.saturating_sub(1);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

/// The layer of a [`Recorder`].
#[derive(Debug, Clone)]
pub struct RecorderLayer {
    recorder: Recorder,
}

impl<S> Layer<S> for RecorderLayer {
    type Service = RecorderService<S>;

    fn layer(&self, inner: S) -> RecorderService<S> {
        RecorderService { inner, recorder: self.recorder.clone() }
    }
}

/// A service whose requests are measured. See [`Recorder`].
#[derive(Debug, Clone)]
pub struct RecorderService<S> {
    inner: S,
    recorder: Recorder,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RecorderService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
{
    type Response = Response<RecorderBody<ResBody>>;
    type Error = S::Error;
    type Future = RecorderFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (meter, open) = self.recorder.enter().unzip();
        let future = scope::within(&mut meter.clone(), || self.inner.call(request));
        RecorderFuture { future: InCurrentBudget::of(meter.clone(), future), meter, open }
    }
}

pin_project! {
    /// The response future of [`RecorderService`].
    pub struct RecorderFuture<F> {
        #[pin]
        future: InCurrentBudget<F>,
        meter: Option<Arc<Meter>>,
        // The last field, so that everything else has been dropped when it is.
        open: Option<Open>,
    }
}

impl<F, B, E> Future for RecorderFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<RecorderBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        let (meter, open) = (this.meter.take(), this.open.take());
        Poll::Ready(
            answer.map(|response| {
                response.map(|body| RecorderBody { inner: Some(body), meter, open })
            }),
        )
    }
}

impl<F> fmt::Debug for RecorderFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// The response body of [`RecorderService`].
    pub struct RecorderBody<B> {
        // `None` once its destructor has run.
        #[pin]
        inner: Option<B>,
        meter: Option<Arc<Meter>>,
        open: Option<Open>,
    }

    impl<B> PinnedDrop for RecorderBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            scope::within(this.meter, || this.inner.set(None));
            *this.open = None;
        }
    }
}

impl<B: Body> Body for RecorderBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let inner = this.inner.as_pin_mut().expect("there until it is dropped");
        scope::within(this.meter, || inner.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> fmt::Debug for RecorderBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderBody").finish_non_exhaustive()
    }
}
