//! What the page "What a budget cannot do" says, and its remedies, as far as no other test holds
//! them.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready as ready_or_pending};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use request_budget::http::ExternalLayer;
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Usage};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Sleep, sleep};
use tower::buffer::Buffer;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Ledger, ms, pass};

/// The client's end of a connection to a server of requests that may take a second, on this side of
/// which so much is buffered; the server writes through what is made here.
fn connect<T>(
    buffered: usize,
    told: &Ledger,
    answer: fn() -> Response<Body>,
    stream: impl FnOnce(DuplexStream) -> T,
) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, server) = duplex(buffered);
    let layer = BudgetLayer::new(Budget::new().total_time(ms(1_000))).with_reporter(told.clone());
    let service = service_fn(move |_: http::Request<hyper::body::Incoming>| {
        ready(Ok::<_, Infallible>(answer()))
    });
    let service = TowerToHyperService::new(layer.layer(service));
    let http = hyper::server::conn::http1::Builder::new();
    tokio::spawn(http.serve_connection(TokioIo::new(stream(server)), service));
    client
}

/// Pieces without end.
fn endless() -> Response<Body> {
    let pieces = stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1 << 16])));
    Response::new(Body::from_stream(pieces))
}

/// One piece, and nothing after it.
fn stuck() -> Response<Body> {
    let piece = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"piece"))]);
    Response::new(Body::from_stream(piece.chain(stream::pending())))
}

fn stuck_of_known_length() -> Response<Body> {
    let mut response = stuck();
    response.headers_mut().insert("content-length", 10.into());
    response
}

/// A stream that fails when nothing of what is written goes out for so long.
struct WriteTimeout {
    stream: DuplexStream,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, buf) {
            self.waiting = None;
            return Poll::Ready(written);
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready_or_pending!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_client_that_reads_nothing_is_cut_when_it_reads_again() {
    let told = Ledger::default();
    let mut client = connect(1_024, &told, endless, |stream| stream);
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(ms(10_000)).await;
    assert_eq!(told.outcomes(), []);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.ends_with(b"0\r\n\r\n"), "the client can tell");
    let end = told.end();
    assert_eq!((end.outcome, end.usage.total_time), (Outcome::Cut, ms(10_000)));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_for_writes_ends_the_body_of_a_client_that_reads_nothing() {
    let told = Ledger::default();
    let mut client = connect(1_024, &told, endless, |stream| WriteTimeout {
        stream,
        limit: ms(5_000),
        waiting: None,
    });
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(ms(5_001)).await;
    let end = told.end();
    assert_eq!((end.outcome, end.usage.total_time), (Outcome::Cancelled, ms(5_000)));
}

#[tokio::test(start_paused = true)]
async fn http_1_0_tells_a_body_that_is_cut_from_a_whole_one_by_its_length_only() {
    // How far the answer to a request of this version gets, and whether the client can tell that it
    // was cut.
    let ask = async |version: &str, answer: fn() -> Response<Body>| {
        let told = Ledger::default();
        let mut client = connect(1 << 20, &told, answer, |stream| stream);
        let request = format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(told.outcomes(), [Outcome::Cut]);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let head = head.to_ascii_lowercase();
        let is_chunked = head.contains("transfer-encoding: chunked");
        let is_short = head.contains("content-length: 10") && body.len() < 10;
        (body.contains("piece"), is_short || (is_chunked && !body.ends_with("0\r\n\r\n")))
    };
    assert_eq!(ask("1.1", stuck).await, (true, true));
    assert_eq!(ask("1.0", stuck).await, (true, false));
    assert_eq!(ask("1.0", stuck_of_known_length).await, (true, true));
}

fn calls() -> u64 {
    Usage::current().expect("in work").external_calls
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_local_set_are_counted_where_the_set_is_polled() {
    let inside = async {
        let set = LocalSet::new();
        let spawned = async { spawn_local(ready(()).external("mail")).await };
        set.run_until(spawned).await.unwrap().unwrap();
        let carried = async { spawn_local(ready(()).external("mail").in_current_budget()).await };
        set.run_until(carried).await.unwrap().unwrap();
        calls()
    };
    assert_eq!(inside.budgeted("inside", Budget::new()).await, Ok(2), "each once");

    let outside = async {
        spawn_local(ready(()).external("mail")).await.unwrap().unwrap();
        let spawned = calls();
        spawn_local(ready(()).external("mail").in_current_budget()).await.unwrap().unwrap();
        (spawned, calls())
    };
    let outside = outside.budgeted("outside", Budget::new());
    assert_eq!(LocalSet::new().run_until(outside).await, Ok((0, 1)));
}

#[tokio::test(start_paused = true)]
async fn calls_inside_a_buffer_are_made_by_its_worker() {
    let client = service_fn(|()| ready(Ok::<_, Infallible>(())));
    let layer = ExternalLayer::new("mail");
    let work = async {
        Buffer::new(layer.layer(client), 1).oneshot(()).await.unwrap();
        let inside = calls();
        layer.layer(Buffer::new(client, 1)).oneshot(()).await.unwrap();
        (inside, calls())
    };
    assert_eq!(work.budgeted("order", Budget::new()).await, Ok((0, 1)));
}

#[tokio::test(start_paused = true)]
async fn what_blocks_the_thread_is_reported_when_it_is_over() {
    let told = Ledger::default();
    let budget = Budget::new().total_time(ms(100)).poll_time(ms(50));
    let work = async {
        pass(ms(300));
        assert_eq!(told.messages(), [""; 0]);
        "done"
    };
    let done = work.budgeted("job", budget).with_reporter(told.clone()).await;
    assert_eq!(done, Ok("done"));
    let messages = told.messages();
    assert!(messages.iter().any(|it| it.contains("in one poll, limit 50ms")), "{messages:?}");
    assert!(messages.iter().any(|it| it.contains("300ms in total")), "{messages:?}");
}
