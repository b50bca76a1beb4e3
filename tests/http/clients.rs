//! Tower clients: their calls are external calls, and take the time left along.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use request_budget::http::{
    DeadlineLayer, ExternalError, ExternalLayer, GRPC_TIMEOUT, ProblemDetails, QueueTime,
    REQUEST_START, TIMEOUT_MS,
};
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, Limit, Resource, Severity};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt};

use crate::support::{Ledger, Script, ms};

#[tokio::test(start_paused = true)]
async fn a_call_of_a_client_is_an_external_call() {
    let ledger = Ledger::default();
    let client = tower::service_fn(async |time| {
        sleep(ms(time)).await;
        if time == 20 { Err("declined") } else { Ok(time) }
    });
    let client = ExternalLayer::new("payments").layer(client);
    let work = async {
        assert_eq!(client.clone().oneshot(10).await.unwrap(), 10);
        let error = client.clone().oneshot(20).await.unwrap_err();
        assert_eq!(error.to_string(), "declined");
        assert!(matches!(error, ExternalError::Inner(_)));
        let error = client.clone().oneshot(900).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "a call of order was cut: 500ms in one external call, limit 500ms: call to \"payments\", 3 times, 530ms in all"
        );
        assert!(matches!(error, ExternalError::Cut(_)));
    };
    let work = work.budgeted("order", Budget::new().external_timeout(ms(500)));
    work.with_reporter(ledger.clone()).await.unwrap();
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (3, ms(530)));
}

#[test]
fn a_call_that_is_refused_does_not_reach_the_client() {
    let called = Cell::new(0);
    // Many clients, such as a buffer, send the request when they are called and not when polled.
    let client = tower::service_fn(|()| {
        called.set(called.get() + 1);
        ready(Ok::<_, Infallible>(()))
    });
    let mut client = ExternalLayer::new("payments").layer(client);
    let work = async {
        client.call(()).await.unwrap();
        assert!(matches!(client.call(()).await, Err(ExternalError::Cut(_))));
    };
    let work = work.budgeted("order", Budget::new().external_calls(Limit::hard(1)));
    assert!(work.now_or_never().unwrap().is_err());
    assert_eq!(called.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_unpolled_was_made_all_the_same() {
    let ledger = Ledger::default();
    let client = tower::service_fn(|()| pending::<Result<(), Infallible>>());
    let mut client = ExternalLayer::new("payments").layer(client);
    let work = async { drop(client.call(())) };
    work.budgeted("order", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(ledger.end().usage.external_calls, 1);
}

#[test]
fn outside_every_unit_of_work_a_client_is_as_it_was() {
    let client = tower::service_fn(|()| ready(Ok::<_, Infallible>(7)));
    let client = ExternalLayer::new("payments").layer(client);
    assert_eq!(client.oneshot(()).now_or_never().unwrap().unwrap(), 7);
}

#[derive(Clone, Debug, PartialEq)]
struct Closed;

impl Service<()> for Closed {
    type Response = ();
    type Error = &'static str;
    type Future = Ready<Result<(), &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Err("closed"))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        unreachable!("it was not ready")
    }
}

#[test]
fn the_readiness_of_a_client_is_its_own() {
    let mut client = ExternalLayer::new("payments").layer(Closed);
    let ready = client.poll_ready(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Err(ExternalError::Inner(error))) = ready else { panic!("{ready:?}") };
    assert_eq!(error.to_string(), "closed");
    assert_eq!(client.get_mut(), &mut Closed);
    assert_eq!(client.get_ref(), &Closed);
    assert_eq!(client.into_inner(), Closed);
}

/// The headers of a request as a client sends it that goes through the layer.
async fn sent(request: Request<()>) -> HeaderMap {
    let client = tower::service_fn(async |request: Request<()>| {
        Ok::<_, Infallible>(request.headers().clone())
    });
    DeadlineLayer::new().layer(client).oneshot(request).await.expect("infallible")
}

#[tokio::test(start_paused = true)]
async fn the_time_left_goes_along_with_a_call() {
    let work = async {
        sleep(ms(250)).await;
        let headers = sent(Request::new(())).await;
        assert_eq!(
            (&headers[GRPC_TIMEOUT], &headers[TIMEOUT_MS]),
            (&"750m".parse().unwrap(), &750.into())
        );
        assert_eq!(headers.len(), 2);
    };
    work.budgeted("order", Budget::new().total_time(ms(1_000))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_two_deadlines_the_shorter_goes_along() {
    let work = async {
        for (there, goes) in [("5", "5"), ("2000", "1000"), ("soon", "1000")] {
            let request = Request::builder().header(TIMEOUT_MS, there).body(()).unwrap();
            assert_eq!(sent(request).await[TIMEOUT_MS], goes);
        }
        for (there, goes) in [("999m", "999m"), ("2S", "1000m")] {
            let request = Request::builder().header(GRPC_TIMEOUT, there).body(()).unwrap();
            assert_eq!(sent(request).await[GRPC_TIMEOUT], goes);
        }
    };
    work.budgeted("order", Budget::new().total_time(ms(1_000))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_on_the_time_none_goes_along() {
    assert_eq!(sent(Request::new(())).await.len(), 0);
    let work = async { assert_eq!(sent(Request::new(())).await.len(), 0) };
    work.budgeted("order", Budget::new().total_time(Limit::soft(ms(1)))).await.unwrap();
}

/// How long a request with these headers lasts that never gets an answer.
async fn lasts(layer: BudgetLayer<Budget>, headers: &[(http::HeaderName, &str)]) -> Duration {
    let started = Instant::now();
    let service =
        tower::service_fn(|_: Request<()>| pending::<Result<Response<Script>, Infallible>>());
    let mut request = Request::new(());
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().expect("a header"));
    }
    let answer = layer.layer(service).oneshot(request).await.expect("infallible");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_shorten_the_time_and_not_lengthen_it() {
    let ours = || BudgetLayer::new(Budget::new().total_time(ms(1_000)));
    let with_theirs = || ours().with_incoming_deadlines();
    let theirs = [(TIMEOUT_MS, "300")];
    assert_eq!(lasts(with_theirs(), &theirs).await, ms(300));
    assert_eq!(lasts(ours(), &theirs).await, ms(1_000), "only where the user wants it");
    assert_eq!(lasts(with_theirs(), &[]).await, ms(1_000));
    assert_eq!(lasts(with_theirs(), &[(TIMEOUT_MS, "5000")]).await, ms(1_000));
    assert_eq!(lasts(with_theirs(), &[(TIMEOUT_MS, "soon")]).await, ms(1_000));
    let both = [(TIMEOUT_MS, "300"), (GRPC_TIMEOUT, "200m")];
    assert_eq!(lasts(with_theirs(), &both).await, ms(200));
    let unlimited = BudgetLayer::new(Budget::new()).with_incoming_deadlines();
    assert_eq!(lasts(unlimited, &theirs).await, ms(300));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_the_caller_is_told_from_ours() {
    let severities = async |theirs, budget: Budget| {
        let ledger = Ledger::default();
        let layer = BudgetLayer::new(budget).with_incoming_deadlines();
        lasts(layer.with_reporter(ledger.clone()), &[(TIMEOUT_MS, theirs)]).await;
        assert_eq!(ledger.outcomes(), [Outcome::Cut]);
        ledger.violations().iter().map(|violation| violation.severity).collect::<Vec<_>>()
    };
    let second = || Budget::new().total_time(ms(1_000));
    assert_eq!(severities("300", second()).await, [Severity::Caller]);
    assert_eq!(severities("300", Budget::new()).await, [Severity::Caller]);
    assert_eq!(severities("1000", second()).await, [Severity::Hard]);
    assert_eq!(severities("2000", second()).await, [Severity::Hard]);
    let soft_as_well = second().total_time(Limit::soft(ms(100)).and_hard(ms(1_000)));
    assert_eq!(severities("300", soft_as_well).await, [Severity::Caller]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_travels_from_service_to_service() {
    let (here, there) = (Ledger::default(), Ledger::default());
    let far = BudgetLayer::new(Budget::new()).with_incoming_deadlines();
    let far = far.with_reporter(there.clone()).layer(tower::service_fn(|_: Request<()>| {
        pending::<Result<Response<Script>, Infallible>>()
    }));
    let work = async {
        sleep(ms(400)).await;
        DeadlineLayer::new().layer(far).oneshot(Request::new(())).await.unwrap().status()
    };
    let work = work.budgeted("order", Budget::new().total_time(ms(1_000)));
    let work = work.with_reporter(here.clone());
    // Polled first, the far one says so before its caller is cut.
    assert_eq!(work.await, Ok(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!((here.outcomes(), there.outcomes()), (vec![Outcome::Ok], vec![Outcome::Cut]));
    assert_eq!(there.messages(), ["GET (no route): 600ms in total, limit 600ms: own code"]);
}

fn an_hour_ago() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    (now - Duration::from_secs(3_600)).as_millis().to_string()
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_is_measured_or_charged_as_the_user_wants() {
    let ledger = Ledger::default();
    let half_an_hour = || {
        let budget = Budget::new().total_time(Duration::from_secs(1_800));
        BudgetLayer::new(budget).with_reporter(ledger.clone())
    };
    let start = an_hour_ago();
    let headers = [(REQUEST_START, &*start)];
    let whole = Duration::from_secs(1_800);
    assert_eq!(lasts(half_an_hour(), &headers).await, whole);
    assert_eq!(lasts(half_an_hour().with_queue_time(QueueTime::Measured), &headers).await, whole);
    let charged = half_an_hour().with_queue_time(QueueTime::Charged);
    assert_eq!(lasts(charged, &headers).await, Duration::ZERO);

    let hours = ledger
        .ends()
        .into_iter()
        .map(|end| end.usage.queue_time.map(|waited| waited.as_secs() / 3_600));
    assert_eq!(hours.collect::<Vec<_>>(), [None, Some(1), Some(1)]);
}

/// What a request that was cut is told by these details.
async fn told(details: ProblemDetails) -> (StatusCode, HeaderValue, Value) {
    let service =
        tower::service_fn(|_: Request<()>| pending::<Result<Response<Script>, Infallible>>());
    let layer = BudgetLayer::new(Budget::new().total_time(ms(1_500))).with_reject(details);
    let answer = layer.layer(service).oneshot(Request::new(())).await.expect("infallible");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|_| "cut").expect("whole").to_bytes();
    let body = serde_json::from_slice(&body).expect("JSON");
    (head.status, head.headers["content-type"].clone(), body)
}

#[tokio::test(start_paused = true)]
async fn problem_details_say_no_more_than_they_are_asked_to() {
    let (status, kind, details) = told(ProblemDetails::new()).await;
    assert_eq!(
        (status, kind),
        (StatusCode::SERVICE_UNAVAILABLE, HeaderValue::from_static("application/problem+json"))
    );
    let mut expected = json!({
        "title": "Service Unavailable",
        "status": 503,
        "detail": "the request used more than it may",
    });
    assert_eq!(details, expected);

    let (_, _, details) = told(ProblemDetails::new().with_limits()).await;
    expected["resource"] = json!(Resource::TotalTime.name());
    expected["limit"] = json!(1.5);
    expected["observed"] = json!(1.5);
    assert_eq!(details, expected);
}
