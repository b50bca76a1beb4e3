//! Statements: the one door from database drivers to the account of the work.
//!
//! [`Query`] is what the instrumented connections of this crate use themselves; with it any other
//! client (Redis, Elasticsearch, one of your own) can be metered as well.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use request_budget::{Budget, BudgetExt, Cut, Usage, db::Query};
//!
//! /// Reads a key of a store. The statement is the shape of the command, without the key.
//! async fn get(key: &str) -> Result<Option<String>, Cut> {
//!     let mut query = Query::begin("GET user:*").await?;
//!     let value = async { Some(format!("value of {key}")) }.await;
//!     query.add_rows(1);
//!     Ok(value)
//! }
//!
//! let work = async {
//!     get("user:1").await?;
//!     get("user:2").await?;
//!     Ok::<_, Cut>(Usage::current())
//! };
//! let usage = work.budgeted("users", Budget::new()).await.unwrap().unwrap().unwrap();
//! assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (2, 2, 2));
//! # }
//! ```

mod begun;
#[cfg(feature = "redis")]
mod cache;
#[cfg(feature = "diesel")]
pub mod diesel;
#[cfg(feature = "sqlx")]
pub(crate) mod driver;
#[cfg(feature = "witness")]
pub(crate) mod events;
#[cfg(feature = "mongodb")]
pub mod mongodb;
mod observed;
mod query;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlx")]
pub mod sqlx;
#[cfg(feature = "sqlx")]
mod wait;
#[cfg(feature = "witness")]
pub(crate) mod witness;

#[cfg(feature = "sqlx")]
pub(crate) use begun::Begun;
#[cfg(feature = "witness")]
pub use events::SqlxEvents;
pub use observed::executed;
pub use query::Query;
#[cfg(feature = "sqlx")]
pub(crate) use wait::{ConnectionWait, TransactionWait};
