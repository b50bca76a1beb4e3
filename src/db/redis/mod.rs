//! An instrumented connection to Redis.
//!
//! # Examples
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> redis::RedisResult<()> {
//! use redis::AsyncCommands;
//! use request_budget::{Budget, BudgetExt, redis::Connection};
//!
//! let client = redis::Client::open("redis://127.0.0.1")?;
//! let cache = Connection::new(client.get_multiplexed_async_connection().await?);
//!
//! let work = async {
//!     let mut cache = cache.clone();
//!     for id in 1..=20 {
//!         let _name: Option<String> = cache.get(format!("user:{id}")).await?;
//!     }
//!     redis::RedisResult::Ok(())
//! };
//! // "users: 6 cache calls of the same kind, limit 5: `GET user:*`, 6 times"
//! let users = Budget::new().cache_calls(10).repeated_cache_calls(5);
//! work.budgeted("users", users).await.unwrap()?;
//! # Ok(()) }
//! ```

mod shape;

use std::io;

use ::redis::aio::ConnectionLike;
use ::redis::{Cmd, Pipeline, RedisError, RedisFuture, Value};

use super::cache::CacheCall;
use crate::error::Cut;
use crate::report::unmeasured::caches_are_metered;

/// A connection to Redis whose round trips are counted, timed and refused.
///
/// It wraps any [`ConnectionLike`]: a multiplexed connection, a `ConnectionManager`, a connection
/// to a cluster. It implements that trait itself, so commands, pipelines and scripts stay
/// unchanged. Clones share the connection if those of the inner one do.
///
/// Each command and each pipeline is one round trip, counted in
/// [`cache_calls`](crate::Budget::cache_calls) with its time, and not as a query. Commands are the
/// same for [`repeated_cache_calls`](crate::Budget::repeated_cache_calls) if they have the same
/// name, and their first keys differ only in ids: `GET user:7` and `GET user:8` are both `GET
/// user:*`. Reports contain no values.
///
/// # Errors
///
/// A command that a hard limit refuses is not sent. Its error contains the cut, which [`Cut::find`]
/// finds. The future of a refused command returns `Pending` first, so that the work can be cut even
/// in a loop that retries.
///
/// # Cancellation
///
/// A command that is dropped midway is counted, with its time until then. How long a command may
/// take is a setting of the connection, `response_timeout`.
///
/// # Not counted
///
/// The set-up of a connection, messages of a subscription, what a manager sends to reconnect, and
/// the redirections of a cluster.
#[derive(Debug, Clone)]
pub struct Connection<C> {
    inner: C,
}

impl<C> Connection<C> {
    /// Wraps a connection, so that what is sent on it is counted.
    pub fn new(inner: C) -> Self {
        caches_are_metered();
        Self { inner }
    }

    /// The inner connection; what is sent on it is not counted.
    pub fn get_ref(&self) -> &C {
        &self.inner
    }

    /// The inner connection, mutably; what is sent on it is not counted.
    pub fn get_mut(&mut self) -> &mut C {
        &mut self.inner
    }

    /// Returns the inner connection.
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C: ConnectionLike + Send> ConnectionLike for Connection<C> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let call = CacheCall::begin(|| shape::of_command(command)).await.map_err(refused)?;
            let answer = self.inner.req_packed_command(command).await;
            drop(call);
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let call = CacheCall::begin(|| shape::of_pipeline(pipeline)).await.map_err(refused)?;
            let answers = self.inner.req_packed_commands(pipeline, offset, count).await;
            drop(call);
            answers
        })
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }
}

/// The error of a command that was refused.
fn refused(cut: Cut) -> RedisError {
    io::Error::other(cut).into()
}
