//! What a unit of work has consumed.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Serialize, Serializer};

use crate::resource::{Resource, Time};

/// What a unit of work has consumed so far, or in all once it has ended.
///
/// Each field is named after its [`Resource`](crate::Resource). What could not be known is `None`,
/// never 0. Durations are serialised as seconds.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use request_budget::{Budget, BudgetExt, Usage};
///
/// let work = async { Usage::current() };
/// let usage = work.budgeted("report", Budget::new()).await.unwrap();
/// assert_eq!(usage.map(|usage| usage.queries), Some(0));
/// assert_eq!(Usage::current(), None, "nothing is counted out here");
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Statement executions that reached a driver, failed and cancelled ones too.
    pub queries: u64,
    /// How often the statement that ran most often was executed; also where that has a
    /// [limit of its own](crate::Budget::repeated_queries_for).
    pub repeated_queries: u64,
    /// Statements that change data or schema, by their first words.
    pub writes: u64,
    /// How many of `queries` were counted after the fact, from what a driver or an ORM says of
    /// itself.
    pub observed: u64,
    /// Rows handed to the caller.
    pub rows: u64,
    /// Transactions and savepoints begun.
    pub transactions: u64,
    /// Time spent waiting for drivers, `BEGIN` and `COMMIT` included; concurrent waits add up.
    #[serde(serialize_with = "seconds")]
    pub query_time: Duration,
    /// The longest wait for a single statement.
    #[serde(serialize_with = "seconds")]
    pub slow_query: Duration,
    /// Time spent waiting for a connection from a pool.
    #[serde(serialize_with = "seconds")]
    pub connection_wait: Duration,
    /// Statements seen that did not pass through a metered connection.
    pub unmetered: u64,
    /// Round trips to a cache.
    pub cache_calls: u64,
    /// How often the kind of command was sent to a cache that was sent most often.
    pub repeated_cache_calls: u64,
    /// Time spent waiting for caches; concurrent waits add up.
    #[serde(serialize_with = "seconds")]
    pub cache_time: Duration,
    /// Peak of live bytes; `None` without the counting allocator.
    pub memory: Option<u64>,
    /// Bytes allocated; `None` without the counting allocator.
    pub allocated: Option<u64>,
    /// Bytes live now, or at the end; `None` without the counting allocator.
    pub retained: Option<u64>,
    /// Calls to external systems.
    pub external_calls: u64,
    /// Time spent in calls to external systems; concurrent calls add up.
    #[serde(serialize_with = "seconds")]
    pub external_time: Duration,
    /// Wall time since the start.
    #[serde(serialize_with = "seconds")]
    pub total_time: Duration,
    /// How long a request waited before it reached the service, which is not in `total_time`;
    /// `None` where that is not known.
    #[serde(serialize_with = "optional_seconds")]
    pub queue_time: Option<Duration>,
    /// The longest single poll; `None` where polls are not timed.
    #[serde(serialize_with = "optional_seconds")]
    pub poll_time: Option<Duration>,
    /// All polls added up; `None` where polls are not timed.
    #[serde(serialize_with = "optional_seconds")]
    pub busy_time: Option<Duration>,
    /// Bytes of response body handed to the server.
    pub response_bytes: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {})",
            Counted(Resource::Queries, self.queries),
            Counted(Resource::Rows, self.rows),
            Time(self.query_time)
        )?;
        if self.repeated_queries > 1 {
            write!(f, ", one statement {} times", self.repeated_queries)?;
        }
        if self.writes > 0 {
            write!(f, ", {}", Counted(Resource::Writes, self.writes))?;
        }
        if self.transactions > 0 {
            write!(f, ", {}", Counted(Resource::Transactions, self.transactions))?;
        }
        if self.observed > 0 {
            write!(f, ", {} observed", self.observed)?;
        }
        if self.unmetered > 0 {
            write!(f, ", {} unmetered", self.unmetered)?;
        }
        if self.cache_calls > 0 {
            let calls = Counted(Resource::CacheCalls, self.cache_calls);
            write!(f, ", {calls} ({})", Time(self.cache_time))?;
        }
        if self.external_calls > 0 {
            let calls = Counted(Resource::ExternalCalls, self.external_calls);
            write!(f, ", {calls} ({})", Time(self.external_time))?;
        }
        match self.memory {
            Some(bytes) => write!(f, ", {} at peak", ByteSize::b(bytes))?,
            None => f.write_str(", memory not measured")?,
        }
        write!(f, ", {} in total", Time(self.total_time))
    }
}

/// "1 query", "2 queries".
struct Counted(Resource, u64);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.1, self.0.phrase(self.1 == 1))
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn optional_seconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}
