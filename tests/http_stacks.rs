//! The layer among others, as the docs of `request_budget::http::layers` have them: outside and
//! inside of each, in one `ServiceBuilder` and as layers of a router. It compiles, each request is
//! reported once, and what an outer layer adds is on the answer to a request that was cut.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::error_handling::HandleErrorLayer;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetLayer, Violation};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestUuid, SetRequestIdLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_http::validate_request::ValidateRequestHeaderLayer;

/// The end of each request: its name and how it ended.
#[derive(Debug, Clone, Default)]
struct Ends(Arc<Mutex<Vec<String>>>);

impl Reporter for Ends {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let end = format!("{}: {}", report.work(), report.outcome());
        self.0.lock().expect("no test panics while it looks").push(end);
    }
}

fn ours(ends: &Ends) -> BudgetLayer<Budget> {
    let budget = Budget::new().total_time(Duration::from_secs(1));
    BudgetLayer::new(budget).with_reporter(ends.clone())
}

fn routes() -> Router {
    Router::new().route("/", get(async || "hello")).route("/slow", get(pending::<()>))
}

async fn ask<S>(app: &S, path: &str) -> (StatusCode, bool)
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone,
{
    let request = Request::get(path).header("origin", "https://example.com");
    let request = request.header("accept", "*/*").body(Body::empty()).expect("is a request");
    let answer = app.clone().oneshot(request).await.expect("infallible");
    let answered = (answer.status(), answer.headers().contains_key("access-control-allow-origin"));
    answer.into_body().collect().await.expect("is whole");
    answered
}

/// Both pages through this stack: each is reported once, and the slow one is cut.
async fn check(what: &str, app: Router, ends: &Ends, has_cors: bool) {
    let app = app.with_state(());
    assert_eq!(ask(&app, "/").await, (StatusCode::OK, has_cors), "{what}");
    assert_eq!(ask(&app, "/slow").await.0, StatusCode::SERVICE_UNAVAILABLE, "{what}");
    let ends = ends.0.lock().expect("no test panics while it looks");
    assert_eq!(*ends, ["GET /: ok", "GET /slow: cut"], "{what}");
}

fn failed() -> HandleErrorLayer<impl Fn(BoxError) -> std::future::Ready<StatusCode> + Clone, ()> {
    HandleErrorLayer::new(|_: BoxError| std::future::ready(StatusCode::TOO_MANY_REQUESTS))
}

/// Checks a layer outside and inside of ours, in one `ServiceBuilder` and as two layers of a
/// router.
macro_rules! around_and_inside {
    ($layer:expr, cors: $cors:expr) => {{
        let what = stringify!($layer);
        let ends = Ends::default();
        let stack = ServiceBuilder::new().layer($layer).layer(ours(&ends));
        check(what, routes().layer(stack), &ends, $cors).await;
        let ends = Ends::default();
        let stack = ServiceBuilder::new().layer(ours(&ends)).layer($layer);
        check(what, routes().layer(stack), &ends, $cors).await;
        let ends = Ends::default();
        check(what, routes().layer(ours(&ends)).layer($layer), &ends, $cors).await;
        let ends = Ends::default();
        check(what, routes().layer($layer).layer(ours(&ends)), &ends, $cors).await;
    }};
}

#[tokio::test(start_paused = true)]
async fn layers_of_tower_http() {
    let minute = Duration::from_secs(60);
    around_and_inside!(CorsLayer::permissive(), cors: true);
    around_and_inside!(CompressionLayer::new(), cors: false);
    around_and_inside!(
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, minute), cors: false
    );
    around_and_inside!(TraceLayer::new_for_http(), cors: false);
    around_and_inside!(CatchPanicLayer::new(), cors: false);
    around_and_inside!(SetRequestIdLayer::x_request_id(MakeRequestUuid), cors: false);
    around_and_inside!(ValidateRequestHeaderLayer::accept("text/plain"), cors: false);
}

#[tokio::test(start_paused = true)]
async fn layers_of_tower() {
    around_and_inside!(ConcurrencyLimitLayer::new(5), cors: false);
    around_and_inside!(
        ServiceBuilder::new().layer(failed()).layer(LoadShedLayer::new()), cors: false
    );
    around_and_inside!(
        ServiceBuilder::new().layer(failed()).layer(BufferLayer::new(5)), cors: false
    );
    around_and_inside!(
        ServiceBuilder::new().layer(failed()).timeout(Duration::from_secs(60)), cors: false
    );

    // Errors of what is inside pass through ours, to where they are handled.
    let ends = Ends::default();
    let stack = ServiceBuilder::new().layer(failed()).layer(ours(&ends)).load_shed();
    check("load_shed", routes().layer(stack.concurrency_limit(5)), &ends, false).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_outer_layer_adds_is_on_the_answer_to_a_request_that_was_cut() {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let (outside, inside) = (Ends::default(), Ends::default());
    let stack = ServiceBuilder::new().layer(CorsLayer::permissive()).layer(ours(&outside));
    assert_eq!(ask(&routes().layer(stack), "/slow").await, (unavailable, true));
    let stack = ServiceBuilder::new().layer(ours(&inside)).layer(CorsLayer::permissive());
    assert_eq!(ask(&routes().layer(stack), "/slow").await, (unavailable, false));
}

#[tokio::test(start_paused = true)]
async fn a_usual_stack() {
    let ends = Ends::default();
    let timeout =
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(60));
    let stack = ServiceBuilder::new()
        .layer(CatchPanicLayer::new())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        // Its body has no default, so what asks for one is further in.
        .layer(TraceLayer::new_for_http())
        .layer(CompressionLayer::new())
        .layer(timeout)
        .layer(CorsLayer::permissive())
        .layer(ours(&ends));
    check("usual", routes().layer(stack), &ends, true).await;
}

/// One at a time, the others wait.
fn one_at_a_time() -> Router {
    Router::new().route("/", get(async || tokio::time::sleep(Duration::from_millis(600)).await))
}

async fn statuses(app: Router) -> Vec<u16> {
    // Makes the layers once, as a server does.
    let app = app.with_state(());
    let all = (0..3).map(|_| ask(&app, "/"));
    let mut all: Vec<_> = futures_util::future::join_all(all)
        .await
        .iter()
        .map(|(status, _)| status.as_u16())
        .collect();
    all.sort_unstable();
    all
}

#[tokio::test(start_paused = true)]
async fn what_waits_until_it_is_ready_is_bounded_by_two_layers_and_not_by_one_builder() {
    let ends = Ends::default();
    let two = one_at_a_time().layer(ConcurrencyLimitLayer::new(1)).layer(ours(&ends));
    assert_eq!(statuses(two).await, [200, 503, 503]);
    let ends = Ends::default();
    let one = ServiceBuilder::new().layer(ours(&ends)).concurrency_limit(1);
    assert_eq!(statuses(one_at_a_time().layer(one)).await, [200, 200, 200]);
    // The remedies: what sheds instead of waiting, and a router's worth of box between the two.
    let ends = Ends::default();
    let shed = ServiceBuilder::new().layer(failed()).layer(ours(&ends)).load_shed();
    assert_eq!(statuses(one_at_a_time().layer(shed.concurrency_limit(1))).await, [200, 429, 429]);
}

#[test]
fn a_hyper_service_in_one_builder() {
    fn is_servable<S, B>(_: S)
    where
        S: Service<http::Request<hyper::body::Incoming>, Response = http::Response<B>> + Clone,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Default + 'static,
    {
    }
    let hello = tower::service_fn(async |_: http::Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(http::Response::new(http_body_util::Full::<Bytes>::default()))
    });
    let stack =
        ServiceBuilder::new().layer(CorsLayer::permissive()).layer(BudgetLayer::new(Budget::new()));
    is_servable(stack.service(hello));
    let stack = ServiceBuilder::new()
        .layer(BudgetLayer::new(Budget::new()))
        .layer(CorsLayer::permissive())
        .layer(CompressionLayer::new());
    drop(stack.service(hello));
}

/// A gRPC service without generated code; `Slow` never answers, and `Watch` sends one message and
/// then nothing.
#[derive(Clone)]
struct Ledger;

impl tonic::server::NamedService for Ledger {
    const NAME: &'static str = "pkg.Ledger";
}

impl Service<http::Request<tonic::body::Body>> for Ledger {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path().ends_with("/Slow") {
                pending::<()>().await;
            }
            let answer = http::Response::builder().header("content-type", "application/grpc");
            if request.uri().path().ends_with("/Watch") {
                let message = Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5])));
                let endless = stream::iter([message]).chain(stream::pending());
                let body = tonic::body::Body::new(StreamBody::new(endless));
                return Ok(answer.body(body).expect("is an answer"));
            }
            let answer = answer.header("grpc-status", "5").body(tonic::body::Body::empty());
            Ok(answer.expect("is an answer"))
        })
    }
}

/// Messages of bytes, as they are.
#[derive(Debug, Clone, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = ();
    type Error = tonic::Status;

    fn encode(&mut self, (): (), _: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;

    fn decode(&mut self, _: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
        Ok(Some(()))
    }
}

#[tokio::test]
async fn a_tonic_client_of_a_tonic_server() {
    let ends = Ends::default();
    let budget = Budget::new().total_time(Duration::from_millis(50));
    let layer = BudgetLayer::new(budget).with_reporter(ends.clone());
    let stack = ServiceBuilder::new().layer(CorsLayer::permissive()).layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().layer(stack).add_service(Ledger);
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    let channel = tonic::transport::Endpoint::new(format!("http://{address}")).expect("is a URL");
    let channel = channel.connect().await.expect("connects");
    let mut codes = Vec::new();
    for method in ["/pkg.Ledger/Get", "/pkg.Ledger/Slow", "/pkg.None/Get"] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.expect("is ready");
        let path = http::uri::PathAndQuery::from_static(method);
        let status =
            client.unary(tonic::Request::new(()), path, Raw).await.expect_err("no message");
        codes.push(status.code());
    }
    use tonic::Code::{DeadlineExceeded, NotFound, Unimplemented};
    assert_eq!(codes, [NotFound, DeadlineExceeded, Unimplemented]);
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("is ready");
    let path = http::uri::PathAndQuery::from_static("/pkg.Ledger/Watch");
    let answer = client.server_streaming(tonic::Request::new(()), path, Raw).await;
    let mut messages = answer.expect("begins").into_inner();
    assert_eq!(messages.message().await.expect("comes before the cut"), Some(()));
    let status = messages.message().await.expect_err("is cut");
    assert_eq!(
        (status.code(), status.message()),
        (DeadlineExceeded, "the time for the call was up")
    );
    assert_eq!(
        *ends.0.lock().expect("no test panics while it looks"),
        [
            "/pkg.Ledger/Get: ok",
            "/pkg.Ledger/Slow: cut",
            "/pkg.None/Get: error",
            "/pkg.Ledger/Watch: cut"
        ]
    );
    server.abort();
}
