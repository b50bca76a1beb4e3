//! The targets and field names of every event, for filters and dashboards.
//!
//! Names and texts in them are on one line: control characters, line breaks and marks that change
//! the direction of a text are written as in a Rust literal (`\n`, `\u{1b}`). In statements, a line
//! break and the white space around it are one space.

/// Target of the one event per violation: WARN for a soft limit, ERROR for a hard one.
pub const VIOLATION: &str = "request_budget::violation";
/// Target of the one event at the end of each unit of work, at DEBUG.
pub const USAGE: &str = "request_budget::usage";
/// Target of the event, at WARN, about work that retains more memory with each run; see
/// [`Growth`](crate::report::Growth).
pub const GROWTH: &str = "request_budget::growth";
/// Target of the events, at WARN, about what cannot be measured and about faults of this library.
pub const HEALTH: &str = "request_budget::health";

/// The [name](crate::Resource::name) of the resource.
pub const RESOURCE: &str = "resource";
/// "soft" or "hard".
pub const SEVERITY: &str = "severity";
/// How much was allowed, in [`UNIT`].
pub const LIMIT: &str = "limit";
/// How much had been used, in [`UNIT`].
pub const OBSERVED: &str = "observed";
/// "count", "bytes" or "us".
pub const UNIT: &str = "unit";
/// The name of the unit of work.
pub const WORK: &str = "work";
/// The [attributes](crate::report::Attributes) of the unit of work, as they print; absent without
/// any.
pub const ATTRIBUTES: &str = "attributes";
/// The name of the unit of work in which this one was begun; absent where there was none.
pub const BEGUN_BY: &str = "begun_by";
/// The innermost span at the crossing.
pub const PLACE: &str = "place";
/// The statement, or kind of command to a cache, that crossed the limit or ran most often.
pub const STATEMENT: &str = "statement";
/// The call to an external system that crossed the limit.
pub const EXTERNAL: &str = "external";
/// How often that statement was executed, or that system called.
pub const TIMES: &str = "times";
/// The [name](crate::Cause::name) of what caused the crossing, where that is neither a
/// [`STATEMENT`] nor an [`EXTERNAL`] call: "connection", "transaction", "slow_client" or
/// "own_code".
pub const CAUSE: &str = "cause";
/// The pool for whose connections was waited: its name, or where it connects to; absent where that
/// is not known.
pub const POOL: &str = "pool";
/// Where a time or memory was crossed: how long what was in flight had been waited for;
/// microseconds.
pub const WAITING: &str = "waiting_us";
/// When the work began; microseconds since the beginning of 1970, UTC.
pub const START: &str = "start_unix_us";
/// Bytes that the runs of a kind of work have allocated and not freed.
pub const GROWN: &str = "grown";
/// How many runs that were.
pub const RUNS: &str = "runs";
/// How many violations of the same work, resource and severity were left out since the last event
/// that said one; absent if none was. In events of [`HEALTH`], how many of what the event is about.
/// See [`limit_events`](super::limit_events).
pub const LEFT_OUT: &str = "left_out";
/// How the work ended: "ok", "error", "cut", "panicked" or "cancelled".
pub const OUTCOME: &str = "outcome";
/// How many limits were crossed.
pub const VIOLATIONS: &str = "violations";
/// See [`Usage::queries`](crate::Usage::queries).
pub const QUERIES: &str = "queries";
/// See [`Usage::repeated_queries`](crate::Usage::repeated_queries).
pub const REPEATED_QUERIES: &str = "repeated_queries";
/// See [`Usage::writes`](crate::Usage::writes).
pub const WRITES: &str = "writes";
/// See [`Usage::observed`](crate::Usage::observed).
pub const OBSERVED_QUERIES: &str = "observed_queries";
/// See [`Usage::rows`](crate::Usage::rows).
pub const ROWS: &str = "rows";
/// See [`Usage::transactions`](crate::Usage::transactions).
pub const TRANSACTIONS: &str = "transactions";
/// See [`Usage::query_time`](crate::Usage::query_time); microseconds.
pub const QUERY_TIME: &str = "query_time_us";
/// See [`Usage::slow_query`](crate::Usage::slow_query); microseconds.
pub const SLOW_QUERY: &str = "slow_query_us";
/// See [`Usage::connection_wait`](crate::Usage::connection_wait); microseconds.
pub const CONNECTION_WAIT: &str = "connection_wait_us";
/// See [`Usage::unmetered`](crate::Usage::unmetered).
pub const UNMETERED: &str = "unmetered";
/// See [`Usage::cache_calls`](crate::Usage::cache_calls).
pub const CACHE_CALLS: &str = "cache_calls";
/// See [`Usage::repeated_cache_calls`](crate::Usage::repeated_cache_calls).
pub const REPEATED_CACHE_CALLS: &str = "repeated_cache_calls";
/// See [`Usage::cache_time`](crate::Usage::cache_time); microseconds.
pub const CACHE_TIME: &str = "cache_time_us";
/// See [`Usage::memory`](crate::Usage::memory); bytes, absent where it is not measured.
pub const MEMORY: &str = "memory";
/// See [`Usage::allocated`](crate::Usage::allocated); bytes, absent where it is not measured. In a
/// violation of memory, how much of it was allocated in what [caused](crate::Cause::allocated) the
/// crossing.
pub const ALLOCATED: &str = "allocated";
/// See [`Usage::retained`](crate::Usage::retained); bytes, absent where it is not measured.
pub const RETAINED: &str = "retained";
/// See [`Usage::external_calls`](crate::Usage::external_calls).
pub const EXTERNAL_CALLS: &str = "external_calls";
/// See [`Usage::external_time`](crate::Usage::external_time); microseconds.
pub const EXTERNAL_TIME: &str = "external_time_us";
/// See [`Usage::total_time`](crate::Usage::total_time); microseconds.
pub const TOTAL_TIME: &str = "total_time_us";
/// See [`Usage::queue_time`](crate::Usage::queue_time); microseconds, absent where it is not known.
pub const QUEUE_TIME: &str = "queue_time_us";
/// See [`Usage::poll_time`](crate::Usage::poll_time); microseconds, absent where polls are not
/// timed.
pub const POLL_TIME: &str = "poll_time_us";
/// See [`Usage::busy_time`](crate::Usage::busy_time); microseconds, absent where polls are not
/// timed.
pub const BUSY_TIME: &str = "busy_time_us";
/// See [`Usage::response_bytes`](crate::Usage::response_bytes).
pub const RESPONSE_BYTES: &str = "response_bytes";
