//! The future of a response, which runs the request up to its headers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::{Ending, ResponseBody};
use super::grpc;
use super::reject::{self, Reject};
use super::server_timing;
use crate::deadline::{Detachable, Held, Timer};
use crate::memory;
use crate::report::Outcome;
use crate::report::method::Methods;
use crate::scope::Work;

pin_project! {
    /// The response future of [`BudgetService`](super::BudgetService).
    pub struct ResponseFuture<F> {
        // Its destructors also have to run inside the scope.
        #[pin]
        future: Held<F>,
        // Moved to the body, once there is a response.
        work: Option<Work>,
        // Created at the first wait: most responses are ready before.
        timer: Option<Timer>,
        reject: Option<Arc<dyn Reject>>,
        origin: Origin,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(work) = this.work.take() {
                this.future.end_early(work, Outcome::Cancelled);
            }
        }
    }
}

/// What is kept of a request.
#[derive(Debug)]
pub(super) struct Origin {
    is_head: bool,
    pub(super) is_call: bool,
    /// The response has the header `Server-Timing`.
    pub(super) shows_timing: bool,
    /// Boxed, since few need it.
    parts: Option<Box<Parts>>,
}

impl Origin {
    #[inline]
    pub(super) fn of<B>(request: &Request<B>, reject: Option<&dyn Reject>) -> Self {
        let parts = |_| {
            let mut parts = Request::new(()).into_parts().0;
            parts.method = request.method().clone();
            parts.uri = request.uri().clone();
            parts.version = request.version();
            parts.headers = request.headers().clone();
            parts.extensions = request.extensions().clone();
            memory::aside(|| Box::new(parts))
        };
        Self {
            is_head: request.method() == Method::HEAD,
            is_call: grpc::is_call(request),
            shows_timing: false,
            parts: reject.filter(|reject| reject.sees_requests()).map(parts),
        }
    }
}

impl Origin {
    /// The value of the header `Server-Timing`, if the response is to have it.
    #[inline]
    fn timing(&self, work: &Work) -> Option<HeaderValue> {
        if self.shows_timing {
            work.meter().and_then(|meter| server_timing::of(meter))
        } else {
            None
        }
    }
}

impl<F: Future + Detachable> ResponseFuture<F> {
    pub(super) fn new(
        future: F,
        work: Work,
        reject: Option<Arc<dyn Reject>>,
        origin: Origin,
    ) -> Self {
        let future = Held::new(future, |future, cx| future.poll(cx).map(drop));
        Self { future, work: Some(work), timer: None, reject, origin }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Detachable,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let work = this.work.as_mut().expect("not polled again after it was done");
        let mut running = work.piece();
        running.enter();
        let future = this.future.as_mut().as_pin_mut();
        let polled = future.expect("there as long as the work is").poll(cx);
        if polled.is_ready() {
            this.future.as_mut().clear();
        }
        running.leave();
        running.done();
        // Most polls end here.
        if polled.is_pending() && !work.may_be_cut() && !poll_elapsed(this.timer, work, cx) {
            return Poll::Pending;
        }
        self.settle(polled, cx)
    }
}

impl<F, B, E> ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Detachable,
{
    /// Returns the response, unless a limit ends the work.
    ///
    /// A separate function, so that its temporaries are not on the stack while nested services are
    /// polled.
    #[inline]
    fn settle(
        mut self: Pin<&mut Self>,
        polled: Poll<F::Output>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<B>>, E>> {
        let this = self.as_mut().project();
        match polled {
            Poll::Ready(Ok(response)) if !this.work.as_ref().is_some_and(Work::may_be_cut) => {
                let work = this.work.take().expect("it is there");
                Poll::Ready(Ok(answered(response, work, this.origin)))
            }
            polled => self.end(polled, cx),
        }
    }

    /// The result of a poll that has failed, or after which a limit may end the work.
    #[cold]
    #[inline(never)]
    fn end(
        self: Pin<&mut Self>,
        polled: Poll<F::Output>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<B>>, E>> {
        let this = self.project();
        let work = this.work.as_mut().expect("taken where it ends");
        let cut = match (work.cut(polled.is_ready()), polled) {
            (None, Poll::Pending) => match poll_elapsed(this.timer, work, cx) {
                true => work.cut_at_deadline(),
                false => match work.poll_cut(cx) {
                    Some(cut) => cut,
                    None => return Poll::Pending,
                },
            },
            (None, Poll::Ready(Ok(response))) => {
                let work = this.work.take().expect("it is there");
                return Poll::Ready(Ok(answered(response, work, this.origin)));
            }
            (None, Poll::Ready(Err(error))) => {
                work.finish(Outcome::Error);
                *this.work = None;
                return Poll::Ready(Err(error));
            }
            (Some(cut), polled) => {
                // An answer made without what was refused; its body belongs to the work.
                work.run(|| drop(polled));
                cut
            }
        };
        let work = this.work.take().expect("it is there");
        let timing = this.origin.timing(&work);
        this.future.end_early(work, Outcome::Cut);
        let Origin { is_call, parts, .. } = this.origin;
        let mut answer =
            reject::answer(this.reject.as_deref(), cut.violation(), parts.as_deref(), *is_call);
        if let Some(timing) = timing {
            server_timing::add(answer.headers_mut(), timing);
        }
        Poll::Ready(Ok(answer.map(ResponseBody::rejected)))
    }
}

/// Whether the deadline of the work has passed. If not, wakes the task when it does.
#[inline]
fn poll_elapsed(timer: &mut Option<Timer>, work: &Work, cx: &mut Context<'_>) -> bool {
    match timer {
        Some(timer) if timer.is_waiting_for(cx.waker()) => false,
        _ => look_at_the_clock(timer, work, cx),
    }
}

#[inline(never)]
fn look_at_the_clock(timer: &mut Option<Timer>, work: &Work, cx: &mut Context<'_>) -> bool {
    let timer = timer.get_or_insert_with(|| Timer::new(work.deadline()));
    Pin::new(timer).poll_elapsed(cx)
}

// Inlined, since the response would be copied into the arguments once more.
#[inline(always)]
fn answered<B: Body + Detachable>(
    mut response: Response<B>,
    work: Work,
    origin: &Origin,
) -> Response<ResponseBody<B>> {
    if let Some(timing) = origin.timing(&work) {
        server_timing::add(response.headers_mut(), timing);
    }
    let (status, headers) = (response.status(), response.headers());
    let meter = work.meter();
    if let Some(method) = meter.and_then(|meter| meter.name().as_method())
        && grpc::shows_the_method(status, headers)
    {
        Methods::all().note_that_it_exists(method);
    }
    let told = if origin.is_call { grpc::outcome(headers) } else { None };
    let is_error = status.is_server_error();
    let outcome = told.unwrap_or(if is_error { Outcome::Error } else { Outcome::Ok });
    let ending = Ending { status, outcome, is_head: origin.is_head, is_call: origin.is_call };
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, ResponseBody::new(body, work, ending))
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;

    /// The memory of a request while it waits, beyond the future of its handler.
    #[test]
    fn a_request_in_flight_needs_boundedly_many_bytes() {
        let account = Meter::BYTES;
        let future = size_of::<ResponseFuture<[u64; 32]>>() - size_of::<[u64; 32]>();
        println!("a request in flight: {account} bytes for the account, {future} in its future");
        assert!(account <= 464, "{account}");
        assert!(future <= 136, "{future}");
    }
}
