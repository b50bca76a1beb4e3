//! A budget for every HTTP request of a tower service.
//!
//! The unit of work is one exchange, from the call of the service to the end of the response body.
//! The layer works around every `Service<http::Request<_>>`, such as an axum router or a hyper
//! service.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! use std::time::Duration;
//! use axum::{Router, body::Body, routing::get};
//! use request_budget::{Budget, BudgetLayer};
//! use tower::ServiceExt;
//!
//! let app = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .route("/slow", get(|| tokio::time::sleep(Duration::from_secs(3600))))
//!     .layer(BudgetLayer::new(Budget::new().queries(20).total_time(Duration::from_secs(1))));
//!
//! let request = |path| http::Request::get(path).body(Body::empty()).unwrap();
//! assert_eq!(app.clone().oneshot(request("/")).await.unwrap().status(), 200);
//! assert_eq!(app.oneshot(request("/slow")).await.unwrap().status(), 503);
//! # }
//! ```
//!
//! # Where to put the layer
//!
//! With axum's `Router::layer` the name of the work is the route that matched, and a policy can
//! choose the budget by it. That costs one boxed route in axum itself, 100 to 150 ns a request.
//! Around the whole router (`ServiceBuilder`, or the layer called on the router) this cost is
//! avoided, but routing has not happened yet, so the work is named by its method alone.
//!
//! For the order among other layers, and the reasons, see [`layers`].
//!
//! A layer inside a layer makes two units of work: what happens inside both is charged to both, and
//! each is reported once.

#[cfg(feature = "aws")]
mod aws;
mod body;
#[cfg(any(feature = "aws", feature = "reqwest-middleware"))]
mod called;
mod deadline;
mod external;
mod future;
mod grpc;
mod idle;
mod incoming;
mod layer;
pub mod layers;
#[cfg(feature = "reqwest-middleware")]
mod middleware;
mod policy;
mod problem;
mod reject;
mod server_timing;
mod service;
mod wait;

pub use crate::error::http::{BodyError, ExternalError};
#[cfg(feature = "aws")]
pub use aws::ExternalHttpClient;
pub use body::ResponseBody;
pub use deadline::{DeadlineLayer, DeadlineService};
pub use external::{ExternalFuture, ExternalLayer, ExternalService};
pub use future::ResponseFuture;
pub use grpc::GrpcStatus;
pub use incoming::{GRPC_TIMEOUT, QUEUE_START, QueueTime, REQUEST_START, TIMEOUT_MS};
pub use layer::BudgetLayer;
#[cfg(feature = "reqwest-middleware")]
pub use middleware::ExternalMiddleware;
pub use policy::{ByRoute, Naming, Policy};
pub use problem::ProblemDetails;
pub use reject::Reject;
pub use service::BudgetService;
