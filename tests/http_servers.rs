//! The layer on real servers, over loopback connections: axum's and a bare hyper one, with HTTP/1.1
//! and HTTP/2.
//!
//! Nothing sleeps. What happened is known from the reports, which are collected until nothing is
//! left that could report.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::net::{self, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::{HeaderValue, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetLayer, ExternalExt, Usage, Violation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, yield_now};
use tower::{Layer, Service};

/// The end of a request, as reported.
#[derive(Debug, Clone, PartialEq)]
struct End {
    work: String,
    outcome: Outcome,
    usage: Usage,
}

/// Sends the end of each request on.
struct Sender(UnboundedSender<End>);

impl Reporter for Sender {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let (work, outcome) = (report.work().to_string(), report.outcome());
        // Nobody listens any more where a test has failed.
        drop(self.0.send(End { work, outcome, usage: report.usage() }));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    Axum,
    Hyper,
}

const EVERYWHERE: [(Server, Version); 4] = [
    (Server::Axum, Version::HTTP_11),
    (Server::Axum, Version::HTTP_2),
    (Server::Hyper, Version::HTTP_11),
    (Server::Hyper, Version::HTTP_2),
];

/// A running server.
struct Site {
    address: SocketAddr,
    server: JoinHandle<()>,
    ends: UnboundedReceiver<End>,
}

impl Site {
    /// The pages below behind one budget.
    async fn of(server: Server, budget: Budget) -> Self {
        match server {
            Server::Axum => {
                let app = Router::new().route("/{page}", any(page));
                Self::axum(|sender| app.layer(BudgetLayer::new(budget).with_reporter(sender))).await
            }
            Server::Hyper => {
                let pages = tower::service_fn(async |request: hyper::Request<Incoming>| {
                    Ok::<_, Infallible>(page(request.map(Body::new)).await)
                });
                let layer = BudgetLayer::new(budget);
                Self::hyper(|sender| layer.with_reporter(sender).layer(pages)).await
            }
        }
    }

    async fn axum(app: impl FnOnce(Sender) -> Router) -> Self {
        let (listener, address) = listen().await;
        let (sender, ends) = unbounded_channel();
        let app = app(Sender(sender));
        let server = tokio::spawn(async { axum::serve(listener, app).await.expect("serves") });
        Self { address, server, ends }
    }

    async fn hyper<S, B>(service: impl FnOnce(Sender) -> S) -> Self
    where
        S: Service<hyper::Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let (listener, address) = listen().await;
        let (sender, ends) = unbounded_channel();
        let service = service(Sender(sender));
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    // Fails where a client hangs up, which some do.
                    drop(
                        auto::Builder::new(TokioExecutor::new())
                            .serve_connection_with_upgrades(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self { address, server, ends }
    }

    async fn connect(&self, version: Version) -> Client {
        Client::connect(self.address, version).await
    }

    /// The next end of a request.
    async fn end(&mut self) -> End {
        soon(self.ends.recv()).await.expect("the server is there")
    }

    /// Stops the server and waits for its connections; returns all ends not yet asked for.
    ///
    /// The clients must be gone by now.
    async fn close(mut self) -> Vec<End> {
        self.server.abort();
        let mut rest = Vec::new();
        while let Some(end) = soon(self.ends.recv()).await {
            rest.push(end);
        }
        rest
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("has an address");
    (listener, address)
}

/// Ends a test that would hang, long after it should be done.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

/// One connection.
struct Client {
    requests: Requests,
    socket: net::TcpStream,
}

enum Requests {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn connect(address: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(address).await.expect("connects");
        let stream = stream.into_std().expect("a socket");
        let socket = stream.try_clone().expect("a socket");
        let io = TokioIo::new(TcpStream::from_std(stream).expect("a socket"));
        let requests = if version == Version::HTTP_2 {
            let handshake = http2::handshake(TokioExecutor::new(), io).await;
            let (requests, connection) = handshake.expect("shakes hands");
            tokio::spawn(async { drop(connection.await) });
            Requests::Two(requests)
        } else {
            let (requests, connection) = http1::handshake(io).await.expect("shakes hands");
            tokio::spawn(async { drop(connection.with_upgrades().await) });
            Requests::One(requests)
        };
        Self { requests, socket }
    }

    async fn get(&mut self, path: &str) -> hyper::Result<http::Response<Incoming>> {
        self.send(http::Request::get(path)).await
    }

    async fn send(
        &mut self,
        request: http::request::Builder,
    ) -> hyper::Result<http::Response<Incoming>> {
        let request = request.header(header::HOST, "localhost");
        let request = request.body(Empty::new()).expect("a request");
        soon(async {
            match &mut self.requests {
                Requests::One(send) => {
                    send.ready().await?;
                    send.send_request(request).await
                }
                Requests::Two(send) => {
                    send.ready().await?;
                    let (mut head, body) = request.into_parts();
                    head.version = Version::HTTP_2;
                    let uri = format!("http://localhost{}", head.uri);
                    head.uri = uri.parse().expect("an address");
                    send.send_request(http::Request::from_parts(head, body)).await
                }
            }
        })
        .await
    }

    /// The whole answer, or what went wrong on the way.
    async fn text(&mut self, path: &str) -> hyper::Result<(StatusCode, String)> {
        let answer = self.get(path).await?;
        let status = answer.status();
        let body = soon(answer.into_body().collect()).await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).expect("text")))
    }

    /// Closes the connection under the protocol, whatever is in flight.
    fn hang_up(self) {
        self.socket.shutdown(net::Shutdown::Both).expect("is connected");
    }
}

/// What the servers serve.
async fn page(request: Request) -> Response {
    match request.uri().path() {
        "/hello" => Response::new(Body::from("hello")),
        "/stream" => {
            let chunks = stream::iter(["chunk "; 3]).then(async |chunk| {
                yield_now().await;
                Ok::<_, Infallible>(chunk)
            });
            Response::new(Body::from_stream(chunks))
        }
        "/endless" => Response::new(begun_and(stream::pending())),
        "/short" => {
            // Promises more than it ever gives.
            let mut answer = Response::new(begun_and(stream::pending()));
            answer.headers_mut().insert(header::CONTENT_LENGTH, 1_000.into());
            answer
        }
        "/never" => pending().await,
        "/nothing" => {
            let mut answer = Response::new(Body::from("not to be sent"));
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        "/call" => {
            ready(()).external("payments").await.expect("allowed");
            let calls = Usage::current().expect("a request").external_calls;
            Response::new(Body::from(calls.to_string()))
        }
        "/panic" => {
            ready(()).external("payments").await.expect("allowed");
            panic!("a handler that panics")
        }
        "/panic-in-body" => Response::new(begun_and(stream::poll_fn(|_| panic!("a body")))),
        "/upgrade" => upgrade(request),
        _ => {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

/// A body that begins and goes on like this.
fn begun_and(rest: impl Stream<Item = Result<&'static str, Infallible>> + Send + 'static) -> Body {
    Body::from_stream(stream::iter([Ok("begun ")]).chain(rest))
}

/// Leaves HTTP and sends back what it gets.
fn upgrade(request: Request) -> Response {
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async {
        let mut peer = TokioIo::new(upgraded.await.expect("the server lets it"));
        let mut heard = [0; 5];
        peer.read_exact(&mut heard).await.expect("something is said");
        peer.write_all(&heard).await.expect("somebody listens");
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
    answer
}

/// The name of a request for one of the pages above.
fn named(server: Server, method: &str) -> String {
    match server {
        Server::Axum => format!("{method} /{{page}}"),
        Server::Hyper => format!("{method} (no route)"),
    }
}

fn outcomes(ends: &[End]) -> Vec<Outcome> {
    ends.iter().map(|end| end.outcome).collect()
}

#[tokio::test]
async fn a_request_is_named_by_its_route_and_never_by_its_path() {
    let app = |sender| {
        let comments = Router::new().route("/comments/{comment}", get(async || "a comment"));
        Router::new()
            .route("/posts/{id}", get(async || "a post").delete(async || "gone"))
            .nest("/posts/{id}", comments)
            .layer(BudgetLayer::new(Budget::new()).with_reporter(sender))
    };
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let site = Site::axum(app).await;
        let mut client = site.connect(version).await;
        client.text("/posts/12345?page=6").await.unwrap();
        client.text("/posts/12345/comments/678").await.unwrap();
        let deleted = client.send(http::Request::delete("/posts/12345")).await.unwrap();
        deleted.into_body().collect().await.unwrap();
        let (status, _) = client.text("/users/12345").await.unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND);
        drop(client);
        let names = site.close().await.into_iter().map(|end| end.work);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                "GET /posts/{id}",
                "GET /posts/{id}/comments/{comment}",
                "DELETE /posts/{id}",
                "GET (no route)",
            ]
        );
    }
}

#[tokio::test]
async fn around_the_whole_router_there_is_no_route_yet() {
    let site = Site::axum(|sender| {
        let app = Router::new().route("/posts/{id}", get(async || "a post"));
        let layer = BudgetLayer::new(Budget::new()).with_reporter(sender);
        Router::new().fallback_service(layer.layer(app))
    })
    .await;
    let mut client = site.connect(Version::HTTP_11).await;
    client.text("/posts/12345").await.unwrap();
    drop(client);
    assert_eq!(site.close().await[0].work, "GET (no route)");
}

#[tokio::test]
async fn a_policy_gives_each_route_its_budget() {
    let policy = |request: &Request| match request.extensions().get().map(MatchedPath::as_str) {
        Some("/slow/{id}") => Budget::new().total_time(Duration::ZERO),
        _ => Budget::new(),
    };
    let site = Site::axum(|sender| {
        Router::new()
            .route("/slow/{id}", get(async || yield_now().await))
            .route("/quick/{id}", get(async || yield_now().await))
            .layer(BudgetLayer::new(policy).with_reporter(sender))
    })
    .await;
    let mut client = site.connect(Version::HTTP_11).await;
    let (slow, _) = client.text("/slow/1").await.unwrap();
    let (quick, _) = client.text("/quick/1").await.unwrap();
    assert_eq!((slow, quick), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
    drop(client);
    assert_eq!(outcomes(&site.close().await), [Outcome::Cut, Outcome::Ok]);
}

#[tokio::test]
async fn a_streamed_body_is_counted_to_its_end() {
    for (server, version) in EVERYWHERE {
        let site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(version).await;
        let answer = client.text("/stream").await.unwrap();
        assert_eq!(answer, (StatusCode::OK, "chunk chunk chunk ".to_owned()));
        drop(client);
        let [end] = <[End; 1]>::try_from(site.close().await).unwrap();
        assert_eq!(end.work, named(server, "GET"), "{server:?} {version:?}");
        assert_eq!((end.outcome, end.usage.response_bytes), (Outcome::Ok, 18));
    }
}

#[tokio::test]
async fn answers_without_a_body_are_complete() {
    for (server, version) in EVERYWHERE {
        let site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(version).await;
        client.text("/missing").await.unwrap();
        client.text("/nothing").await.unwrap();
        drop(client);
        let ends = site.close().await;
        assert_eq!(outcomes(&ends), [Outcome::Ok; 2], "{server:?} {version:?}");
    }
}

#[tokio::test]
async fn an_answer_to_head_is_complete() {
    for (server, version) in EVERYWHERE {
        if (server, version) == (Server::Hyper, Version::HTTP_2) {
            continue; // There hyper sends the body that the handler gives, against the protocol.
        }
        let site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(version).await;
        for path in ["/hello", "/stream"] {
            let answer = client.send(http::Request::head(path)).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
        drop(client);
        let ends = site.close().await;
        assert_eq!(outcomes(&ends), [Outcome::Ok; 2], "{server:?} {version:?}");
        assert!(ends.iter().all(|end| end.usage.response_bytes == 0));
        assert_eq!(ends[0].work, named(server, "HEAD"));
    }
}

#[tokio::test]
async fn many_requests_on_one_connection_are_reported_once_each() {
    for (server, version) in EVERYWHERE {
        let site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(version).await;
        for _ in 0..50 {
            assert_eq!(client.text("/call").await.unwrap().1, "1", "each has its own account");
        }
        drop(client);
        let ends = site.close().await;
        assert_eq!(outcomes(&ends), [Outcome::Ok; 50], "{server:?} {version:?}");
        assert!(ends.iter().all(|end| end.usage.external_calls == 1));
    }
}

#[tokio::test]
async fn requests_at_once_on_one_connection_are_told_apart() {
    for server in [Server::Axum, Server::Hyper] {
        let site = Site::of(server, Budget::new()).await;
        let client = site.connect(Version::HTTP_2).await;
        let Requests::Two(requests) = &client.requests else { unreachable!("connected so") };
        let answers = (0..50).map(async |_| {
            let request = http::Request::get("http://localhost/call").body(Empty::new());
            let answer = requests.clone().send_request(request.unwrap()).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        });
        let answers = soon(futures_util::future::join_all(answers)).await;
        assert!(answers.iter().all(|calls| calls == "1"), "{answers:?}");
        drop(client);
        let ends = site.close().await;
        assert_eq!(outcomes(&ends), [Outcome::Ok; 50], "{server:?}");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_body_cancels_the_request() {
    for (server, version) in EVERYWHERE {
        for path in ["/endless", "/short"] {
            let mut site = Site::of(server, Budget::new()).await;
            let mut client = site.connect(version).await;
            let mut body = client.get(path).await.unwrap().into_body();
            let first = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(first.into_data().unwrap(), "begun ");
            client.hang_up();
            let end = site.end().await;
            assert_eq!(end.outcome, Outcome::Cancelled, "{server:?} {version:?} {path}");
            assert_eq!(end.usage.response_bytes, 6);
            drop(body);
            assert_eq!(site.close().await, []);
        }
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_before_the_headers_cancels_the_request() {
    for server in [Server::Axum, Server::Hyper] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let (reached, mut begun) = unbounded_channel();
            let handler = move |_: Request| {
                reached.send(()).expect("the test waits");
                pending::<Response>()
            };
            let mut site = match server {
                Server::Axum => {
                    Site::axum(|sender| {
                        let layer = BudgetLayer::new(Budget::new()).with_reporter(sender);
                        Router::new().fallback(handler).layer(layer)
                    })
                    .await
                }
                Server::Hyper => {
                    Site::hyper(|sender| {
                        let layer = BudgetLayer::new(Budget::new()).with_reporter(sender);
                        layer.layer(tower::service_fn(move |request: http::Request<Incoming>| {
                            let handled = handler(request.map(Body::new));
                            async { Ok::<_, Infallible>(handled.await) }
                        }))
                    })
                    .await
                }
            };
            let mut client = site.connect(version).await;
            tokio::select! {
                _ = client.get("/") => unreachable!("it is never answered"),
                begun = soon(begun.recv()) => begun.expect("the server is there"),
            }
            client.hang_up();
            assert_eq!(site.end().await.outcome, Outcome::Cancelled, "{server:?} {version:?}");
            assert_eq!(site.close().await, []);
        }
    }
}

#[tokio::test]
async fn a_stream_that_the_client_resets_leaves_the_others() {
    for server in [Server::Axum, Server::Hyper] {
        let mut site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(Version::HTTP_2).await;
        let mut body = client.get("/endless").await.unwrap().into_body();
        assert!(soon(body.frame()).await.unwrap().is_ok());
        drop(body);
        assert_eq!(site.end().await.outcome, Outcome::Cancelled, "{server:?}");
        assert_eq!(client.text("/call").await.unwrap().1, "1");
        drop(client);
        assert_eq!(outcomes(&site.close().await), [Outcome::Ok]);
    }
}

#[tokio::test]
async fn after_a_panic_the_next_request_starts_clean() {
    for (server, version) in EVERYWHERE {
        for path in ["/panic", "/panic-in-body"] {
            let mut site = Site::of(server, Budget::new()).await;
            let mut client = site.connect(version).await;
            assert!(client.text(path).await.is_err(), "{server:?} {version:?}");
            let end = site.end().await;
            assert_eq!(end.outcome, Outcome::Panicked, "{server:?} {version:?}");
            // The server runs on this very thread.
            assert_eq!(Usage::current(), None);
            if version == Version::HTTP_11 {
                client = site.connect(version).await;
            }
            assert_eq!(client.text("/call").await.unwrap().1, "1");
            drop(client);
            let [next] = <[End; 1]>::try_from(site.close().await).unwrap();
            assert_eq!((next.outcome, next.usage.external_calls), (Outcome::Ok, 1));
        }
    }
}

fn a_moment() -> Budget {
    Budget::new().total_time(Duration::from_millis(50))
}

#[tokio::test]
async fn a_request_that_is_cut_is_answered_and_the_connection_lives_on() {
    for (server, version) in EVERYWHERE {
        let site = Site::of(server, a_moment()).await;
        let mut client = site.connect(version).await;
        for _ in 0..2 {
            let answer = client.text("/never").await.unwrap();
            let expected = (StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n".to_owned());
            assert_eq!(answer, expected, "{server:?} {version:?}");
        }
        drop(client);
        assert_eq!(outcomes(&site.close().await), [Outcome::Cut; 2]);
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_an_error_to_the_client() {
    for (server, version) in EVERYWHERE {
        for path in ["/endless", "/short"] {
            let site = Site::of(server, a_moment()).await;
            let mut client = site.connect(version).await;
            assert!(client.text(path).await.is_err(), "{server:?} {version:?} {path}");
            drop(client);
            assert_eq!(outcomes(&site.close().await), [Outcome::Cut]);
        }
    }
}

#[tokio::test]
async fn a_cut_body_leaves_the_other_streams_of_its_connection() {
    for server in [Server::Axum, Server::Hyper] {
        let site = Site::of(server, a_moment()).await;
        let mut client = site.connect(Version::HTTP_2).await;
        client.text("/endless").await.unwrap_err();
        assert_eq!(client.text("/call").await.unwrap().1, "1");
        drop(client);
        assert_eq!(outcomes(&site.close().await), [Outcome::Cut, Outcome::Ok], "{server:?}");
    }
}

#[tokio::test]
async fn an_upgrade_ends_the_request_and_not_the_connection() {
    for server in [Server::Axum, Server::Hyper] {
        let mut site = Site::of(server, Budget::new()).await;
        let mut client = site.connect(Version::HTTP_11).await;
        let request = http::Request::get("/upgrade")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "echo");
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(site.end().await.outcome, Outcome::Ok, "{server:?}");

        let mut peer = TokioIo::new(soon(hyper::upgrade::on(answer)).await.unwrap());
        peer.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        soon(peer.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"hello");
        drop((client, peer));
        assert_eq!(site.close().await, []);
    }
}

#[tokio::test]
async fn a_client_with_a_pool_sees_nothing_of_the_layer() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let site = Site::of(Server::Axum, Budget::new()).await;
        let client = reqwest::Client::builder().no_proxy();
        let client = match version {
            Version::HTTP_2 => client.http2_prior_knowledge(),
            _ => client.http1_only(),
        };
        let client = client.build().unwrap();
        for (path, length) in [("hello", Some(5)), ("stream", None)] {
            let url = format!("http://{}/{path}", site.address);
            let answer = soon(client.get(url).send()).await.unwrap();
            assert_eq!((answer.version(), answer.content_length()), (version, length));
            assert!(soon(answer.text()).await.is_ok());
        }
        drop(client);
        assert_eq!(outcomes(&site.close().await), [Outcome::Ok; 2]);
    }
}
