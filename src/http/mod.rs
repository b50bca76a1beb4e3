//! A budget for every HTTP request of a tower service.
//!
//! The unit of work is one exchange, from the call of the service to the end of the response body.
//! It works around anything that is a `Service<http::Request<_>>`: an axum router, a hyper service.
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
//! choose the budget by it, for the price of one boxed route, 100 to 150 ns a request, in axum itself.
//! Around the whole router (`ServiceBuilder`, or the layer called on the router) that price falls away,
//! but routing has not happened yet: the work is then named by its method alone.
//!
//! In which order it goes among other layers, and why: [`layers`].
//!
//! A layer inside a layer makes two units of work: what happens inside both is charged to both, and
//! each reports once.

mod body;
mod deadline;
mod error;
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
mod service;
mod wait;

pub use body::ResponseBody;
pub use deadline::{DeadlineLayer, DeadlineService};
pub(crate) use error::held;
pub use error::{BodyError, ExternalError};
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
