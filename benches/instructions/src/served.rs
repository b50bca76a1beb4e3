//! A router of axum behind hyper, over a pipe in memory.

use std::convert::Infallible;

use axum::Router;
use axum::routing::get;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::Service;

use crate::region;

pub fn hello() -> Router {
    Router::new().route("/posts", get(async || "hello"))
}

/// Sends so many requests, 16 at once, and reads the answers.
pub async fn run<S, B>(service: S, requests: u32)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    B: Send + 'static,
{
    const AT_ONCE: u32 = 16;
    const REQUEST: &[u8] = b"GET /posts HTTP/1.1\r\nhost: localhost\r\n\r\n";

    let (mut client, server) = tokio::io::duplex(64 << 10);
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(server), TowerToHyperService::new(service));
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async move {
        let served = tokio::task::spawn_local(region::counted(connection));
        let mut answers = vec![0; 64 << 10];
        client.write_all(REQUEST).await.expect("is sent");
        let length = client.read(&mut answers).await.expect("is read");
        assert!(answers.starts_with(b"HTTP/1.1 200"));
        let some = REQUEST.repeat(AT_ONCE as usize);
        for _ in 0..requests / AT_ONCE {
            client.write_all(&some).await.expect("is sent");
            let mut left = length * AT_ONCE as usize;
            while left > 0 {
                left -= client.read(&mut answers).await.expect("is read");
            }
        }
        drop(client);
        served.await.expect("no panic").expect("serves until the client is gone");
    });
    all.await;
}
