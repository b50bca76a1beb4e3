//! A service called by hand: the layer and nothing else.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use request_budget::db::Query;
use tower::{Service, ServiceExt};

use crate::region;

/// A handler in its simplest form, which is pending so often before it answers.
#[derive(Debug, Clone, Copy)]
pub struct Handler {
    pending: u32,
}

impl Handler {
    pub fn pending(pending: u32) -> Self {
        Self { pending }
    }
}

impl Service<Request<Body>> for Handler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Answer {
        Answer { pending: self.pending }
    }
}

#[derive(Debug)]
pub struct Answer {
    pending: u32,
}

impl Future for Answer {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    // Not to be optimised into what polls it: a handler of the real world is not either.
    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending > 0 {
            self.pending -= 1;
            return Poll::Pending;
        }
        Poll::Ready(Ok(hello()))
    }
}

fn hello() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"hello")))
}

/// Waits once, for a statement: by a driver that does nothing, so that it is polled as often in
/// each run.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    pub is_metered: bool,
}

impl Service<Request<Body>> for Lookup {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Row;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Row {
        Row { is_metered: self.is_metered, is_sent: false, query: None }
    }
}

#[derive(Debug)]
pub struct Row {
    is_metered: bool,
    is_sent: bool,
    query: Option<Query>,
}

impl Future for Row {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.is_sent {
            self.is_sent = true;
            if self.is_metered {
                let query = Query::start("SELECT id, title, body FROM posts WHERE id = ?");
                self.query = Some(query.expect("no hard limit"));
            }
            return Poll::Pending;
        }
        if let Some(mut query) = self.query.take() {
            query.add_rows(1);
        }
        Poll::Ready(Ok(hello()))
    }
}

/// Sends so many requests, one after the other, and reads each body until its end is known, as
/// hyper does.
pub async fn run<S, B>(mut service: S, requests: u32)
where
    S: Service<Request<Body>, Response = Response<B>, Error: Debug>,
    B: http_body::Body<Error: Debug>,
{
    region::counted(async {
        for turn in 0..requests {
            if turn % 8 == 0 {
                tokio::task::yield_now().await;
            }
            let service = service.ready().await.expect("is ready");
            let request = Request::get("/posts").body(Body::empty()).expect("is valid");
            let mut future = pin!(service.call(request));
            // Polled again at once, whoever wakes it: what is counted is the poll, not the waking.
            let response = poll_fn(|cx| {
                loop {
                    if let Poll::Ready(response) = future.as_mut().poll(cx) {
                        return Poll::Ready(response);
                    }
                }
            });
            let mut body = pin!(response.await.expect("answers").into_body());
            while !body.is_end_stream() {
                let Some(frame) = body.frame().await else { break };
                black_box(&frame);
            }
        }
    })
    .await;
}
