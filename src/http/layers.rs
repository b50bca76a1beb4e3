//! In which order the layers of a service go, and why.
//!
//! From the outside in, as a [`ServiceBuilder`](https://docs.rs/tower) has them:
//!
//! | layer | why there |
//! |---|---|
//! | `CatchPanicLayer` | what panics further in is reported here as panicked, and answered there |
//! | `SetRequestIdLayer`, `TraceLayer` | the events of the budget are in the request's span |
//! | `CompressionLayer` | so that `response_bytes` are those of the service; inside, those on the wire |
//! | `TimeoutLayer`, with more time than `total_time` | only a net: it cuts without saying why |
//! | `CorsLayer`, `ValidateRequestHeaderLayer` | the answer to a request that was cut has their headers, too |
//! | **`BudgetLayer`** | |
//! | `LoadShedLayer` over `ConcurrencyLimitLayer`, `BufferLayer` | see below |
//! | the service | |
//!
//! * What is outside is not counted, and what it adds is on every answer, that to a request that was cut
//!   included. What is inside is counted, and is not there on that answer.
//! * `HandleErrorLayer` goes outside of everything that can fail, ours or not: errors pass through this layer as
//!   they are. This layer itself never fails; a cut is an answer.
//! * With axum, `Router::layer` runs after routing, so requests are named by their route. A layer that spawns
//!   the handler goes outside of this one: a spawned task is not counted.
//! * Layers that answer by themselves (`CorsLayer`, `TimeoutLayer`, `ValidateRequestHeaderLayer`) ask that the
//!   body of what is inside of them have a default. That of this layer has one; that of `TraceLayer` has
//!   none, so `TraceLayer` goes outside of them, or in a `Router::layer` of its own.
//!
//! # What waits until it is ready
//!
//! In one `ServiceBuilder`, a layer further in can wait in `poll_ready`, before it is called: for a permit of
//! `ConcurrencyLimitLayer`, for a place in the queue of `BufferLayer`. There is no request yet, so no budget
//! bounds that wait, and it is in no account. The remedies:
//!
//! * Two calls of `Router::layer`, the limit first and the budget second. A router asks whether its routes are
//!   ready once the request is there, so `total_time` bounds the wait:
//!
//!   ```
//!   # use axum::{Router, routing::get};
//!   # use request_budget::{Budget, BudgetLayer};
//!   # use std::time::Duration;
//!   use tower::limit::ConcurrencyLimitLayer;
//!
//!   let budget = Budget::new().total_time(Duration::from_secs(1));
//!   let app: Router = Router::new()
//!       .route("/", get(|| async { "hello" }))
//!       .layer(ConcurrencyLimitLayer::new(100))
//!       .layer(BudgetLayer::new(budget));
//!   ```
//! * `LoadShedLayer` right outside of the limit: nothing waits, and what finds no place is answered at once by
//!   a `HandleErrorLayer`.
//!
//! # gRPC
//!
//! With tonic the layer goes into `Server::builder().layer(..)`. Calls (`content-type: application/grpc`) are
//! answered by a [`GrpcStatus`](super::GrpcStatus) when they are cut, and named by their method. Inside of
//! `GrpcWebLayer` that holds for calls of browsers as well.
//!
//! # Over the wire
//!
//! A body that is cut resets its HTTP/2 stream with `CANCEL`; over HTTP/1.1 the connection is closed before the
//! last chunk. An HTTP/1.0 client that is sent a body of unknown length takes its end for the end of the
//! connection: it can tell a cut from the whole only where there is a `content-length`.
