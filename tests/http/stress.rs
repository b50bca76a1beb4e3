//! Many requests at once, on many threads, that end in every way.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, Usage};
use tokio::task::{JoinSet, yield_now};
use tower::{Layer, ServiceExt};

use crate::support::{Ledger, call};

const REQUESTS: u64 = 2_000;
const WORKERS: usize = 4;

/// What a request does, from its number alone: every run does the same, in another order.
#[derive(Clone, Copy, Debug)]
struct Plan {
    yields: u32,
    calls: u32,
    children: u32,
    frames: u32,
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Complete,
    Fail,
    PanicInHandler,
    PanicInBody,
    DropFuture,
    DropBody,
}

impl Plan {
    fn of(number: u64) -> Self {
        let mut state = mixed(number);
        let mut draw = |below: u32| {
            state = mixed(state);
            u32::try_from(state % u64::from(below)).expect("below a u32")
        };
        let fate = match draw(10) {
            0 => Fate::Fail,
            1 => Fate::PanicInHandler,
            2 => Fate::PanicInBody,
            3 => Fate::DropFuture,
            4 => Fate::DropBody,
            _ => Fate::Complete,
        };
        Self { yields: draw(5), calls: draw(4), children: draw(3), frames: 1 + draw(4), fate }
    }

    fn outcome(self) -> Outcome {
        match self.fate {
            Fate::Complete => Outcome::Ok,
            Fate::Fail => Outcome::Error,
            Fate::PanicInHandler | Fate::PanicInBody => Outcome::Panicked,
            Fate::DropFuture | Fate::DropBody => Outcome::Cancelled,
        }
    }

    /// The calls of the handler and its children, and of the body, one a frame; `None` where that
    /// depends on when the future was dropped.
    fn all_calls(self) -> Option<u64> {
        let handler = self.calls + self.children;
        Some(u64::from(match self.fate {
            Fate::Complete | Fate::Fail => handler + self.frames,
            Fate::PanicInHandler => handler,
            Fate::PanicInBody | Fate::DropBody => handler + self.frames - 1,
            Fate::DropFuture => return None,
        }))
    }

    async fn handle(self) -> Response<Frames> {
        for _ in 0..self.calls {
            call();
            yield_now().await;
        }
        for _ in 0..self.children {
            let child = async {
                yield_now().await;
                call();
            };
            tokio::spawn(child.in_current_budget()).await.expect("does not panic");
        }
        for _ in 0..self.yields {
            yield_now().await;
        }
        match self.fate {
            Fate::PanicInHandler => panic!("a handler that panics"),
            Fate::DropFuture => std::future::pending().await,
            _ => {}
        }
        let mut response =
            Response::new(Frames { left: self.frames, waited: false, fate: self.fate });
        if matches!(self.fate, Fate::Fail) {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    }
}

/// A body that makes a call for each frame, and waits before each.
struct Frames {
    left: u32,
    waited: bool,
    fate: Fate,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match (self.left, self.fate) {
            (0, _) => return Poll::Ready(None),
            (1, Fate::PanicInBody) => panic!("a body that panics"),
            _ => self.left -= 1,
        }
        call();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
    }
}

/// The mixing step of SplitMix64.
fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a server does with a request, or a client makes it do.
async fn exchange(plan: Plan, answer: impl Future<Output = Answer>) {
    let answer = if matches!(plan.fate, Fate::DropFuture) {
        let hung_up = async {
            for _ in 0..plan.yields {
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = answer => unreachable!("it waits for ever"),
            () = hung_up => return,
        }
    } else {
        answer.await
    };
    let mut body = Box::pin(answer.expect("infallible").into_body());
    if matches!(plan.fate, Fate::DropBody) {
        for _ in 1..plan.frames {
            body.frame().await.expect("a frame").expect("no limit");
        }
        return;
    }
    while let Some(frame) = body.frame().await {
        frame.expect("no limit");
    }
}

type Answer = Result<Response<request_budget::http::ResponseBody<Frames>>, Infallible>;

#[test]
fn each_of_many_requests_is_reported_once_and_no_thread_keeps_a_scope() {
    let ledger = Ledger::default();
    let left_behind = Arc::new(Mutex::new(Vec::new()));
    let note = {
        let left_behind = left_behind.clone();
        move || left_behind.lock().expect("not poisoned").push(Usage::current())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .on_thread_stop(note)
        .build()
        .unwrap();
    let service = BudgetLayer::new(Budget::new().poll_time(std::time::Duration::MAX))
        .with_names(|request: &Request<u64>| request.body().to_string())
        .with_reporter(ledger.clone())
        .layer(tower::service_fn(|request: Request<u64>| async move {
            Ok::<_, Infallible>(Plan::of(*request.body()).handle().await)
        }));

    let panicked = runtime.block_on(async {
        let mut requests = JoinSet::new();
        for number in 0..REQUESTS {
            let answer = service.clone().oneshot(Request::new(number));
            requests.spawn(exchange(Plan::of(number), answer));
        }
        let mut panicked = 0;
        while let Some(done) = requests.join_next().await {
            panicked += usize::from(done.is_err());
        }
        panicked
    });
    drop(runtime); // waits for its threads

    let left_behind = left_behind.lock().unwrap();
    assert!(left_behind.len() >= WORKERS);
    assert!(left_behind.iter().all(Option::is_none), "{left_behind:?}");

    let mut ends = ledger.ends();
    ends.sort_by_key(|end| end.work.parse::<u64>().unwrap());
    assert_eq!(ends.len() as u64, REQUESTS);
    for (end, number) in ends.iter().zip(0..) {
        let plan = Plan::of(number);
        assert_eq!(end.work, number.to_string());
        assert_eq!(end.outcome, plan.outcome(), "{number}: {plan:?}");
        if let Some(calls) = plan.all_calls() {
            assert_eq!(end.usage.external_calls, calls, "{number}: {plan:?}");
        }
    }
    assert_eq!(panicked, ends.iter().filter(|end| end.outcome == Outcome::Panicked).count());
    assert!(panicked > 0);
}
