//! A reporter that remembers, a body that follows a script, and polling by hand.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use request_budget::http::{BodyError, BudgetService, ResponseBody};
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetLayer, ExternalExt, Usage, Violation};
use tower::{Layer, Service};

/// Remembers what it is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    violations: Vec<Violation>,
    ends: Vec<End>,
}

/// The end of a unit of work.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct End {
    pub(crate) work: String,
    pub(crate) outcome: Outcome,
    pub(crate) violations: u32,
    pub(crate) usage: Usage,
}

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        self.with(|told| told.violations.push(violation.clone()));
    }

    fn finished(&self, report: &Report<'_>) {
        let end = End {
            work: report.work().to_string(),
            outcome: report.outcome(),
            violations: report.violations(),
            usage: report.usage(),
        };
        self.with(|told| told.ends.push(end));
    }
}

impl Ledger {
    fn with<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.0.lock().expect("no test panics while it looks"))
    }

    pub(crate) fn ends(&self) -> Vec<End> {
        self.with(|told| told.ends.clone())
    }

    /// How all work ended so far, in the order of the ends.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.with(|told| told.ends.iter().map(|end| end.outcome).collect())
    }

    /// The only end so far.
    pub(crate) fn end(&self) -> End {
        let [end] = <[End; 1]>::try_from(self.ends()).expect("one end");
        end
    }

    /// How many external calls each work was charged, by name, in the order of the ends.
    pub(crate) fn calls(&self) -> Vec<(String, u64)> {
        self.with(|told| {
            let calls = |end: &End| (end.work.clone(), end.usage.external_calls);
            told.ends.iter().map(calls).collect()
        })
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.with(|told| told.violations.clone())
    }

    /// The violations so far, as they print.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.with(|told| told.violations.iter().map(ToString::to_string).collect())
    }
}

/// Calls an external system, which answers at once: a charge to the work that runs here.
pub(crate) fn call() {
    ready(()).external("payments").now_or_never().expect("ready").expect("allowed");
}

/// Calls an external system when it is dropped, as destructors may.
#[derive(Debug)]
pub(crate) struct CallOnDrop;

impl Drop for CallOnDrop {
    fn drop(&mut self) {
        // Refused in work that was cut, and counted for work that runs here.
        drop(ready(()).external("destructor").now_or_never());
    }
}

/// Notes, when it is dropped, whether a unit of work was running there.
#[derive(Debug, Clone, Default)]
pub(crate) struct DropSite(Arc<Mutex<Vec<bool>>>);

#[derive(Debug)]
pub(crate) struct Dropped(DropSite);

impl DropSite {
    pub(crate) fn guard(&self) -> Dropped {
        Dropped(self.clone())
    }

    /// For each guard that was dropped, whether that was inside a scope.
    pub(crate) fn inside(&self) -> Vec<bool> {
        self.0.lock().expect("nothing panics under this lock").clone()
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let mut inside = self.0.0.lock().expect("nothing panics under this lock");
        inside.push(Usage::current().is_some());
    }
}

/// A future that is dropped by those who hold it, not by its own end, and is ready or not.
#[derive(Debug)]
pub(crate) struct Holding<T>(pub(crate) T, pub(crate) Poll<()>);

impl<T> Future for Holding<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.1
    }
}

/// Lets time pass on the paused clock, within a poll.
pub(crate) fn pass(time: Duration) {
    // The clock is moved by the first poll; what follows only lets timers ring.
    let _ = tokio::time::advance(time).now_or_never();
}

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs what must panic.
pub(crate) fn panics<T>(run: impl FnOnce() -> T) {
    // `T` may have destructors that matter; it is not made.
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it did not panic");
}

/// What one poll of a body does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    Data(&'static str),
    Trailers,
    Fail,
    Wait,
    Panic,
    /// Lets time pass, then does the next step.
    Pass(Duration),
    /// Makes an external call, which must be refused, then does the next step.
    Refused,
}

/// A body that follows a script, then ends; only ever polled or dropped inside a scope.
#[derive(Debug, Default)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    tells_its_end: bool,
    length: Option<u64>,
    _held: Option<Dropped>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }

    /// Says that it is at its end without being polled for it.
    pub(crate) fn telling_its_end(self) -> Self {
        Self { tells_its_end: true, ..self }
    }

    /// Says how long it is.
    pub(crate) fn of_length(self, length: u64) -> Self {
        Self { length: Some(length), ..self }
    }

    pub(crate) fn dropped_at(self, site: &DropSite) -> Self {
        Self { _held: Some(site.guard()), ..self }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        assert!(Usage::current().is_some(), "polled outside its scope");
        while let Some(step) = self.steps.pop_front() {
            return Poll::Ready(Some(match step {
                Step::Data(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
                Step::Trailers => Ok(Frame::trailers(HeaderMap::new())),
                Step::Fail => Err(Failure),
                Step::Wait => return Poll::Pending,
                Step::Panic => panic!("a body that panics"),
                Step::Pass(time) => {
                    pass(time);
                    continue;
                }
                Step::Refused => {
                    // What is refused is so at the second poll.
                    let mut call = pin!(ready(()).external("payments"));
                    assert!(poll_once(call.as_mut()).is_pending());
                    assert!(matches!(poll_once(call), Poll::Ready(Err(_))), "not refused");
                    continue;
                }
            }));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.tells_its_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Failure;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file is gone")
    }
}

impl std::error::Error for Failure {}

/// What one poll of a body has given, to be compared.
#[derive(Debug, PartialEq)]
pub(crate) enum Given {
    Data(String),
    Trailers,
    Failed(String),
    Cut(String),
    Nothing,
    End,
}

pub(crate) fn data(text: &str) -> Given {
    Given::Data(text.to_owned())
}

/// Polls a body once.
pub(crate) fn next<B>(body: &mut Pin<Box<ResponseBody<B>>>) -> Given
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>>,
{
    match body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => Given::Nothing,
        Poll::Ready(None) => Given::End,
        Poll::Ready(Some(Err(BodyError::Inner(error)))) => Given::Failed(error.to_string()),
        Poll::Ready(Some(Err(BodyError::Cut(cut)))) => Given::Cut(cut.to_string()),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => Given::Data(String::from_utf8(data.to_vec()).expect("text")),
            Err(_) => Given::Trailers,
        },
    }
}

pub(crate) type Answer = Response<Pin<Box<ResponseBody<Script>>>>;

/// A service under a budget that reports to a ledger.
pub(crate) fn budgeted<S>(budget: Budget, ledger: &Ledger, service: S) -> BudgetService<S, Budget> {
    BudgetLayer::new(budget).with_reporter(ledger.clone()).layer(service)
}

/// The future of a request that is handled by this future, which answers `200 OK` with its output.
pub(crate) fn handled<F>(
    budget: Budget,
    ledger: &Ledger,
    handler: F,
) -> Pin<Box<impl Future<Output = Answer> + use<F>>>
where
    F: Future<Output = Script> + Send + 'static,
{
    let mut handler = Some(handler);
    let service = tower::service_fn(move |_: Request<()>| {
        let handler = handler.take().expect("called once");
        handler.map(|script| Ok::<_, Infallible>(Response::new(script)))
    });
    let response = budgeted(budget, ledger, service).call(Request::new(()));
    Box::pin(response.map(|answer| answer.expect("infallible").map(Box::pin)))
}

/// The answer, ready at once, of a service that answers with this status and body.
pub(crate) fn answer(
    budget: Budget,
    ledger: &Ledger,
    method: Method,
    status: StatusCode,
    script: Script,
) -> Answer {
    let mut response = Response::new(script);
    *response.status_mut() = status;
    let mut response = Some(response);
    let service = tower::service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(response.take().expect("called once")))
    });
    let mut request = Request::new(());
    *request.method_mut() = method;
    let answer = budgeted(budget, ledger, service).call(request).now_or_never();
    answer.expect("ready at once").expect("infallible").map(Box::pin)
}

/// The body of a `200 OK` to a GET.
pub(crate) fn body(
    budget: Budget,
    ledger: &Ledger,
    script: Script,
) -> Pin<Box<ResponseBody<Script>>> {
    answer(budget, ledger, Method::GET, StatusCode::OK, script).into_body()
}
