//! The future of a response: the request up to its headers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::{Ending, ResponseBody};
use super::grpc;
use super::reject::{self, Reject};
use crate::deadline::{Detachable, Held, Timer};
use crate::memory;
use crate::report::Outcome;
use crate::report::method::Methods;
use crate::scope::Work;

pin_project! {
    /// The response future of [`BudgetService`](super::BudgetService).
    pub struct ResponseFuture<F> {
        // Its destructors run inside the scope as well.
        #[pin]
        future: Held<F>,
        // Handed on to the body.
        work: Option<Work>,
        // Made at the first wait: most answers are ready by then.
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
    /// In a box: few want to see it.
    parts: Option<Box<Parts>>,
}

impl Origin {
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
            parts: reject.filter(|reject| reject.sees_requests()).map(parts),
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let work = this.work.as_mut().expect("not polled again after it was done");
        // Handed out only when it is there: an answer is large, and most polls have none.
        let mut answer = None;
        work.run(|| {
            let future = this.future.as_mut().as_pin_mut();
            if let Poll::Ready(ready) = future.expect("there as long as the work is").poll(cx) {
                answer = Some(ready);
                this.future.as_mut().clear();
            }
        });
        // Most polls end here.
        if answer.is_none() && !work.may_be_cut() && !poll_elapsed(this.timer, work, cx) {
            return Poll::Pending;
        }
        let cut = match (work.cut(answer.is_some()), answer) {
            (None, None) => match poll_elapsed(this.timer, work, cx) {
                true => work.time_is_up(),
                false => match work.poll_cut(cx) {
                    Some(cut) => cut,
                    None => return Poll::Pending,
                },
            },
            (None, Some(answer)) => {
                let work = this.work.take().expect("taken only here");
                return Poll::Ready(answered(answer, work, this.origin));
            }
            (Some(cut), answer) => {
                // An answer made without what was refused; its body belongs to the work.
                work.run(|| drop(answer));
                cut
            }
        };
        let work = this.work.take().expect("taken where the answer is there");
        this.future.end_early(work, Outcome::Cut);
        let Origin { is_call, parts, .. } = this.origin;
        let answer =
            reject::answer(this.reject.as_deref(), cut.violation(), parts.as_deref(), *is_call);
        Poll::Ready(Ok(answer.map(ResponseBody::rejected)))
    }
}

/// Whether the time of the work is up; if not, the task will be woken when it is.
#[inline]
fn poll_elapsed(timer: &mut Option<Timer>, work: &Work, cx: &mut Context<'_>) -> bool {
    let timer = timer.get_or_insert_with(|| Timer::new(work.deadline()));
    Pin::new(timer).poll_elapsed(cx)
}

fn answered<B: Body + Detachable, E>(
    answer: Result<Response<B>, E>,
    mut work: Work,
    origin: &Origin,
) -> Result<Response<ResponseBody<B>>, E> {
    match answer {
        Ok(response) => {
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
            let ending =
                Ending { status, outcome, is_head: origin.is_head, is_call: origin.is_call };
            Ok(response.map(|body| ResponseBody::new(body, work, ending)))
        }
        Err(error) => {
            work.finish(Outcome::Error);
            Err(error)
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
