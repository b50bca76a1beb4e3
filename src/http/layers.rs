//! The order of layers around a service, and the reasons for it.
//!
//! From the outermost to the innermost, as in a [`ServiceBuilder`](https://docs.rs/tower):
//!
//! | layer | why there |
//! |---|---|
//! | `CatchPanicLayer` | a panic further in is reported by the budget, and answered by this layer |
//! | `SetRequestIdLayer`, `TraceLayer` | the events of the budget are emitted in the span of the request |
//! | `CompressionLayer` | `response_bytes` are those of the service; if it were further in, those on the wire |
//! | `TimeoutLayer`, with more time than `total_time` | a safety net only, because it does not name a cause |
//! | `CorsLayer`, `ValidateRequestHeaderLayer` | the response to a request that was cut has their headers, too |
//! | **`BudgetLayer`** | |
//! | `LoadShedLayer` over `ConcurrencyLimitLayer`, `BufferLayer` | see below |
//! | the service | |
//!
//! * A layer outside of the budget is not counted, and what it adds is on every response, also on
//!   that to a request that was cut. A layer inside is counted, and adds nothing to the response to
//!   a request that was cut.
//! * `HandleErrorLayer` goes outside of everything that can fail: errors pass through this layer
//!   unchanged. This layer itself never fails; a cut is a response.
//! * With axum, `Router::layer` runs after routing, so requests are named by their route. A layer
//!   that spawns the handler goes outside of this one, because a spawned task is not counted.
//! * Layers that respond by themselves (`CorsLayer`, `TimeoutLayer`, `ValidateRequestHeaderLayer`)
//!   require that the body of the service inside of them implements `Default`. The body of this
//!   layer does; that of `TraceLayer` does not, so `TraceLayer` goes outside of them, or in a
//!   `Router::layer` of its own.
//!
//! # Layers that wait until they are ready
//!
//! In one `ServiceBuilder`, a layer further in can wait in `poll_ready`, before it is called: for a
//! permit of `ConcurrencyLimitLayer`, or for a slot in the queue of `BufferLayer`. At that point
//! there is no request, so no budget bounds that wait, and it is not counted. The remedies:
//!
//! * Two calls of `Router::layer`, the limit first and the budget second. A router polls the
//!   readiness of its routes after it has received the request, so `total_time` bounds the wait:
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
//! * `LoadShedLayer` directly outside of the limit: nothing waits, and a request above the limit is
//!   answered at once by a `HandleErrorLayer`.
//!
//! # gRPC
//!
//! With tonic the layer goes into `Server::builder().layer(..)`. Calls (`content-type:
//! application/grpc`) are answered by a [`GrpcStatus`](super::GrpcStatus) when they are cut, and
//! named by their method. Inside of `GrpcWebLayer` that holds for calls of browsers as well.
//!
//! # Over the wire
//!
//! A body that is cut resets its HTTP/2 stream with `CANCEL`; over HTTP/1.1 the connection is
//! closed before the last chunk. For an HTTP/1.0 client the end of the connection is the end of a
//! body of unknown length, so it can distinguish a cut from the complete body only if there is a
//! `content-length`.
