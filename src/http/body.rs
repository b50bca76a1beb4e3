//! The body of a response, which runs the request from its headers to its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::grpc::{self, Framing};
use super::idle::Idle;
use super::wait::Deadline;
use crate::deadline::{Detachable, Held};
use crate::error::http::{BodyError, BoxError};
use crate::meter::recording::Unread;
use crate::report::Outcome;
use crate::resource::Resource;
use crate::scope::Work;
use crate::time::Instant;

pin_project! {
    /// The response body of [`BudgetService`](super::BudgetService): the request ends with it.
    ///
    /// The end is reported once, at the first of: the last frame, trailers, an error, a cut, the
    /// drop of the body.
    pub struct ResponseBody<B> {
        // Its destructors also have to run inside the scope.
        #[pin]
        inner: Held<B>,
        // The payload of a response of our own, to a request that was cut. Boxed, as is everything
        // that few responses have, because responses are moved often.
        rejection: Option<Box<Bytes>>,
        work: Option<Work>,
        deadline: Deadline,
        idle: Idle,
        sent: u64,
        complete: Complete,
        // Emits a warning if the server does not read a streamed body.
        unread: Unread,
        // Only for gRPC calls.
        framing: Option<Framing>,
    }

    impl<B> PinnedDrop for ResponseBody<B> {
        #[inline]
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.work.is_none() {
                return;
            }
            let outcome = this.complete.outcome_of_drop(*this.sent);
            if !matches!(outcome, Outcome::Cancelled) {
                this.unread.end();
            }
            if let Some(meter) = this.work.as_ref().and_then(Work::meter) {
                meter.end_unasked();
            }
            end(this.inner, this.work, outcome);
        }
    }
}

/// What the head of the response determines about its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) status: StatusCode,
    /// The outcome of the work if the body is complete.
    pub(super) outcome: Outcome,
    pub(super) is_head: bool,
    pub(super) is_call: bool,
}

/// What is known beforehand about the end of a body.
#[derive(Debug, Clone, Copy)]
struct Complete {
    /// The outcome of the work if the body is complete.
    outcome: Outcome,
    /// The length of the body, or `UNKNOWN`. A server that has sent that much may drop the body
    /// without polling it again.
    length: u64,
}

impl Complete {
    /// Longer than any body.
    const UNKNOWN: u64 = u64::MAX;

    fn outcome_of_drop(self, sent: u64) -> Outcome {
        if self.length == sent { self.outcome } else { Outcome::Cancelled }
    }
}

impl<B: Body + Detachable> ResponseBody<B> {
    #[inline]
    pub(super) fn new(body: B, work: Work, ending: Ending) -> Self {
        let Ending { status, outcome, is_head, is_call } = ending;
        // The server drops the body of a response that has none by definition.
        let is_bodiless = is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_empty = is_bodiless || body.is_end_stream();
        let length = if is_empty { Some(0) } else { body.size_hint().exact() };
        if let Some(meter) = work.meter() {
            meter.end_clock_at_headers();
        }
        let is_streamed = length.is_none();
        let unread = if is_streamed {
            Unread::of(work.meter().map(|meter| &**meter))
        } else {
            Unread::default()
        };
        Self {
            inner: Held::new(body, poll_on),
            unread,
            rejection: None,
            deadline: Deadline::default(),
            idle: Idle::default(),
            work: Some(work),
            sent: 0,
            complete: Complete { outcome, length: length.unwrap_or(Complete::UNKNOWN) },
            framing: is_call.then(Framing::default),
        }
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn rejected(payload: Bytes) -> Self {
        Self {
            inner: Held::Done,
            rejection: Some(payload).filter(|payload| !payload.is_empty()).map(Box::new),
            deadline: Deadline::default(),
            idle: Idle::default(),
            work: None,
            sent: 0,
            complete: Complete { outcome: Outcome::Cut, length: Complete::UNKNOWN },
            unread: Unread::default(),
            framing: None,
        }
    }
}

/// An empty body that belongs to no request, for outer layers that create responses by themselves.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::rejected(Bytes::new())
    }
}

/// Drops the body, then reports the end, unless that was done before.
fn end<B>(inner: Pin<&mut Held<B>>, work: &mut Option<Work>, outcome: Outcome) {
    let Some(mut work) = work.take() else { return };
    if inner.is_done() {
        return work.finish(outcome);
    }
    let is_early = matches!(outcome, Outcome::Cut | Outcome::Cancelled);
    // A merged body may have failed in one part while another one waits for its command.
    if is_early || work.has_commands_in_flight() {
        return inner.end_early(work, outcome);
    }
    work.run(|| inner.clear());
    work.finish(outcome);
}

/// Discards frames. Yields after each: by the next poll the driver's pool has reported that a
/// command has ended, while polling at once would begin the next command.
fn poll_on<B: Body>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<()> {
    match body.poll_frame(cx) {
        Poll::Ready(None | Some(Err(_))) => Poll::Ready(()),
        Poll::Ready(Some(Ok(_))) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Pending => Poll::Pending,
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data: From<Bytes>, Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.as_mut().project();
        if let Some(payload) = this.rejection.take() {
            return rejection_frame(*payload);
        }
        let Some(work) = this.work else { return Poll::Ready(None) };
        if let Some(meter) = work.meter() {
            meter.end_unasked();
        }
        let mut is_end = false;
        let mut running = work.piece();
        running.enter();
        let polled = poll_inside(this.inner, cx, &mut is_end);
        running.leave();
        running.done();
        self.settle(polled, is_end, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.rejection.is_none() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.rejection, self.inner.as_ref()) {
            (Some(payload), _) => SizeHint::with_exact(payload.len() as u64),
            (None, Some(inner)) => inner.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

impl<B> ResponseBody<B>
where
    B: Body<Data: From<Bytes>, Error: Into<BoxError>>,
{
    /// Returns a frame, and ends the work if the body ends or a limit was crossed.
    ///
    /// A separate function, so that its temporaries are not on the stack while nested bodies are
    /// polled.
    #[inline]
    fn settle(
        self: Pin<&mut Self>,
        polled: Polled<B>,
        is_end: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BodyError>>> {
        let this = self.project();
        let Some(work) = this.work else { return Poll::Ready(None) };
        if polled.is_ready() && this.idle.is_waiting() {
            this.idle.end(work);
        }
        let cut_by = |work: &Work| match work.cut(false) {
            None if is_time_up(work) => Some(work.cut_at_deadline()),
            cut => cut,
        };
        let cut = match polled {
            Poll::Ready(None) => match work.cut(true) {
                // If something was refused, the body may have ended without being complete.
                Some(cut) => cut,
                None => {
                    this.unread.end();
                    end(this.inner, this.work, this.complete.outcome);
                    return Poll::Ready(None);
                }
            },
            Poll::Ready(Some(Err(error))) => {
                this.unread.end();
                end(this.inner, this.work, Outcome::Error);
                return Poll::Ready(Some(Err(BodyError::Inner(error.into()))));
            }
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                if let Some(framing) = this.framing {
                    frame.data_ref().into_iter().for_each(|data| framing.follow(data));
                    let told = frame.trailers_ref().and_then(grpc::outcome);
                    this.complete.outcome = told.unwrap_or(this.complete.outcome);
                }
                *this.sent = this.sent.saturating_add(length);
                add_sent(work, length);
                // All data was returned, even if trailers may follow.
                let is_whole = is_end || this.complete.length == *this.sent;
                // A frame that completes the response is never discarded. After others the deadline
                // is checked, since a body that is always ready would never get to the timer.
                let cut = if is_whole { None } else { cut_by(work) };
                match cut {
                    Some(cut) => cut,
                    None => {
                        if is_end {
                            this.unread.end();
                            end(this.inner, this.work, this.complete.outcome);
                        } else if !is_whole && let Some(meter) = work.meter() {
                            meter.begin_unasked();
                        }
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
            }
            Poll::Pending => match work.cut(false) {
                Some(cut) => cut,
                None if this.deadline.poll_elapsed(work, cx) => work.cut_at_deadline(),
                None => match this.idle.poll_elapsed(work, cx).or_else(|| work.poll_cut(cx)) {
                    Some(cut) => cut,
                    None => return Poll::Pending,
                },
            },
        };
        this.unread.end();
        end(this.inner, this.work, Outcome::Cut);
        Poll::Ready(Some(match this.framing.take() {
            Some(framing) if framing.is_between_messages() => {
                Ok(Frame::trailers(grpc::trailers(cut.violation())))
            }
            _ => Err(BodyError::cut(cut)),
        }))
    }
}

type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

/// Polls the inner body, and drops it at its end.
#[inline]
fn poll_inside<B: Body>(
    mut held: Pin<&mut Held<B>>,
    cx: &mut Context<'_>,
    is_end: &mut bool,
) -> Polled<B> {
    let mut inner = held.as_mut().as_pin_mut().expect("there as long as the work is");
    let polled = inner.as_mut().poll_frame(cx);
    *is_end = match &polled {
        Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || inner.is_end_stream(),
        Poll::Ready(Some(Err(_))) => true,
        // `settle` checks for a cut before the destructors run, since operations in these may be
        // refused.
        Poll::Ready(None) | Poll::Pending => false,
    };
    if *is_end {
        held.clear_inline();
    }
    polled
}

/// The only frame of the response to a request that was cut.
fn rejection_frame<D: From<Bytes>>(payload: Bytes) -> Poll<Option<Result<Frame<D>, BodyError>>> {
    Poll::Ready(Some(Ok(Frame::data(D::from(payload)))))
}

/// Whether the deadline of the work has passed, for polls that do not wait and so have no timer.
fn is_time_up(work: &Work) -> bool {
    work.deadline().is_some_and(|deadline| Instant::now() >= deadline)
}

/// Charges this request only, not its outer works: they return bodies of their own, if any.
fn add_sent(work: &Work, bytes: u64) {
    if let Some(meter) = work.meter() {
        meter.hand_over(bytes);
        meter.add_own(Resource::ResponseBytes, bytes);
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("sent", &self.sent).finish_non_exhaustive()
    }
}
