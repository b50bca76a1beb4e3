//! gRPC calls by hand: what they are answered when cut, how they end, what they are called.

#![expect(clippy::unwrap_used, reason = "what is not there fails the test")]

use std::convert::Infallible;
use std::future::{pending, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use request_budget::http::{BodyError, GrpcStatus, ProblemDetails};
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetLayer, Cut, ExternalExt, Limit, Violation};
use tower::{Layer, ServiceExt};

use crate::support::{Ledger, Script, ms, pass};

fn request(path: &str) -> Request<()> {
    let request = Request::post(path).header("content-type", "application/grpc+proto");
    request.body(()).unwrap()
}

/// The answer to a call that is refused something.
fn refused(layer: &BudgetLayer<Budget>, request: Request<()>) -> Response<Bytes> {
    let service = tower::service_fn(|_: Request<()>| {
        drop(ready(()).external("payments").now_or_never());
        ready(Ok::<_, Infallible>(Response::new(Script::new([]))))
    });
    let answer = layer.layer(service).oneshot(request).now_or_never().unwrap().unwrap();
    let (parts, body) = answer.into_parts();
    Response::from_parts(parts, body.collect().now_or_never().unwrap().unwrap().to_bytes())
}

fn no_calls() -> BudgetLayer<Budget> {
    BudgetLayer::new(Budget::new().external_calls(Limit::hard(0)))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn a_call_that_is_cut_is_answered_by_its_headers_alone() {
    let answer = refused(&no_calls(), request("/pkg.Cut/Refused"));
    assert_eq!((answer.status().as_u16(), answer.body().len()), (200, 0));
    let headers = answer.headers();
    assert_eq!(header(headers, "content-type"), "application/grpc");
    assert_eq!(header(headers, "grpc-status"), "8");
    assert_eq!(header(headers, "grpc-message"), "the call used more than it may");

    let said =
        refused(&no_calls().with_reject(GrpcStatus::new().with_limits()), request("/pkg.Cut/Said"));
    assert_eq!(header(said.headers(), "grpc-message"), "1 external call, limit 0");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_up_exceeds_its_deadline() {
    let layer = BudgetLayer::new(Budget::new()).with_incoming_deadlines();
    let service = layer.layer(tower::service_fn(|_: Request<()>| {
        pending::<Result<Response<Script>, Infallible>>()
    }));
    let mut request = request("/pkg.Cut/Slow");
    request.headers_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let answer = service.oneshot(request).await.unwrap();
    assert_eq!(header(answer.headers(), "grpc-status"), "4");
    assert_eq!(header(answer.headers(), "grpc-message"), "the time for the call was up");
}

#[test]
fn one_layer_answers_rest_and_grpc_each_in_its_own_way() {
    let problem = || no_calls().with_reject(ProblemDetails::new());
    let call = refused(&problem(), request("/pkg.Cut/Problem"));
    assert_eq!((call.status().as_u16(), header(call.headers(), "grpc-status")), (200, "8"));
    let rest = refused(&problem(), Request::new(()));
    assert_eq!(rest.status().as_u16(), 503);
    assert_eq!(header(rest.headers(), "content-type"), "application/problem+json");

    let by_request = |_: &Violation, request: &http::request::Parts| {
        Response::new(Bytes::from(format!("{} {}", request.method, request.uri)))
    };
    let seen = refused(&no_calls().with_reject_by(by_request), request("/pkg.Cut/Seen?x=1"));
    assert_eq!(seen.body(), "POST /pkg.Cut/Seen?x=1");
}

/// A body of these frames, after which time passes and nothing comes.
fn stuck(
    frames: &[&'static [u8]],
) -> impl http_body::Body<Data = Bytes, Error = Infallible> + use<> {
    let frames: Vec<_> =
        frames.iter().map(|bytes| Frame::data(Bytes::from_static(bytes))).collect();
    let mut frames = frames.into_iter();
    StreamBody::new(futures_util::stream::poll_fn(move |_| match frames.next() {
        Some(frame) => std::task::Poll::Ready(Some(Ok(frame))),
        None => {
            pass(ms(1_000));
            std::task::Poll::Pending
        }
    }))
}

/// How a stream of these frames ends that is cut after them.
fn cut_after(frames: &[&'static [u8]]) -> Result<HeaderMap, BodyError> {
    let ledger = Ledger::default();
    let mut body = Some(stuck(frames));
    let service = tower::service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(body.take().unwrap())))
    });
    let layer = BudgetLayer::new(Budget::new().total_time(ms(1_000))).with_reporter(ledger.clone());
    let answer = layer.layer(service).oneshot(request("/pkg.Cut/Stream")).now_or_never();
    let mut body = Box::pin(answer.unwrap().unwrap().into_body());
    for _ in frames {
        assert!(body.frame().now_or_never().unwrap().unwrap().unwrap().is_data());
    }
    let end = body.frame().now_or_never().unwrap().unwrap();
    assert!(body.frame().now_or_never().unwrap().is_none());
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    end.map(|frame| frame.into_trailers().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_ends_in_trailers_between_messages() {
    let between: [&[&[u8]]; 3] =
        [&[], &[b"\0\0\0\0\x02ab"], &[b"\0\0\0\0\x02a", b"b\0\0\0\0", b"\0"]];
    for frames in between {
        let trailers = cut_after(frames).unwrap();
        assert_eq!(header(&trailers, "grpc-status"), "4");
    }
    let error = cut_after(&[b"\0\0\0\0\x02a"]).unwrap_err();
    assert!(Cut::find(&error).is_some(), "in a message the stream can only be reset");
}

#[test]
fn the_status_decides_the_outcome() {
    let outcome = |in_headers: bool, code: &'static str| {
        let ledger = Ledger::default();
        let mut status = HeaderMap::new();
        status.insert("grpc-status", code.parse().unwrap());
        let service = tower::service_fn(move |_: Request<()>| {
            let trailers = (!in_headers)
                .then(|| Ok::<_, Infallible>(Frame::<Bytes>::trailers(status.clone())));
            let body = StreamBody::new(futures_util::stream::iter(trailers));
            let mut answer = Response::new(body);
            if in_headers {
                *answer.headers_mut() = status.clone();
            }
            ready(Ok::<_, Infallible>(answer))
        });
        let layer = BudgetLayer::new(Budget::new()).with_reporter(ledger.clone());
        let answer = layer.layer(service).oneshot(request("/pkg.Ends/Get")).now_or_never();
        drop(answer.unwrap().unwrap().into_body().collect().now_or_never().unwrap());
        assert_eq!(ledger.end().work, "/pkg.Ends/Get");
        ledger.end().outcome
    };
    for in_headers in [true, false] {
        for code in ["0", "1", "3", "5", "7", "8", "16"] {
            assert_eq!(outcome(in_headers, code), Outcome::Ok, "{code}");
        }
        for code in ["2", "4", "12", "13", "14", "15"] {
            assert_eq!(outcome(in_headers, code), Outcome::Error, "{code}");
        }
    }
}
