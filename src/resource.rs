//! The resources that can be limited, with their units and stable names.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Serialize, Serializer};

/// A kind of thing that a unit of work consumes and a [`Budget`](crate::Budget) can limit.
///
/// # Examples
///
/// ```
/// use request_budget::{Resource, resource::Unit};
///
/// assert_eq!(Resource::QueryTime.name(), "query_time");
/// assert_eq!(Resource::QueryTime.unit(), Unit::Time);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resource {
    /// Statement executions that reached a driver.
    Queries,
    /// Executions of the one statement that ran most often.
    RepeatedQueries,
    /// Statements that change data or schema.
    Writes,
    /// Rows handed to the caller.
    Rows,
    /// Transactions and savepoints begun.
    Transactions,
    /// Time spent waiting for a driver, added up.
    QueryTime,
    /// The longest wait for a single statement.
    SlowQuery,
    /// Time spent waiting for a connection from a pool, added up.
    ConnectionWait,
    /// Round trips to a cache.
    CacheCalls,
    /// Round trips to a cache by the one kind of command that was sent most often.
    RepeatedCacheCalls,
    /// Time spent waiting for a cache, added up.
    CacheTime,
    /// The peak of live bytes.
    Memory,
    /// Bytes allocated, whether or not they were freed again.
    Allocated,
    /// Bytes still live at the end.
    Retained,
    /// Calls to external systems.
    ExternalCalls,
    /// Time spent in calls to external systems, added up.
    ExternalTime,
    /// The longest that one call to an external system may take.
    ExternalTimeout,
    /// Wall time, from the start of the work to its end.
    TotalTime,
    /// Wall time again, as a limit that only reports.
    SlowRequest,
    /// The longest single poll.
    PollTime,
    /// Bytes of response body handed to the server.
    ResponseBytes,
    /// The longest wait for the next piece of a response body.
    BodyIdle,
}

impl Resource {
    /// Every resource, in the order of the declaration.
    pub const ALL: &[Self] = &[
        Self::Queries,
        Self::RepeatedQueries,
        Self::Writes,
        Self::Rows,
        Self::Transactions,
        Self::QueryTime,
        Self::SlowQuery,
        Self::ConnectionWait,
        Self::CacheCalls,
        Self::RepeatedCacheCalls,
        Self::CacheTime,
        Self::Memory,
        Self::Allocated,
        Self::Retained,
        Self::ExternalCalls,
        Self::ExternalTime,
        Self::ExternalTimeout,
        Self::TotalTime,
        Self::SlowRequest,
        Self::PollTime,
        Self::ResponseBytes,
        Self::BodyIdle,
    ];

    /// The number of resources, which is the length of every array with an element for each.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The stable name, as in events, in [`Usage`](crate::Usage) and in the builder of the budget.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::RepeatedQueries => "repeated_queries",
            Self::Writes => "writes",
            Self::Rows => "rows",
            Self::Transactions => "transactions",
            Self::QueryTime => "query_time",
            Self::SlowQuery => "slow_query",
            Self::ConnectionWait => "connection_wait",
            Self::CacheCalls => "cache_calls",
            Self::RepeatedCacheCalls => "repeated_cache_calls",
            Self::CacheTime => "cache_time",
            Self::Memory => "memory",
            Self::Allocated => "allocated",
            Self::Retained => "retained",
            Self::ExternalCalls => "external_calls",
            Self::ExternalTime => "external_time",
            Self::ExternalTimeout => "external_timeout",
            Self::TotalTime => "total_time",
            Self::SlowRequest => "slow_request",
            Self::PollTime => "poll_time",
            Self::ResponseBytes => "response_bytes",
            Self::BodyIdle => "body_idle",
        }
    }

    /// The unit in which it is measured.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::Queries
            | Self::RepeatedQueries
            | Self::Writes
            | Self::Rows
            | Self::Transactions
            | Self::CacheCalls
            | Self::RepeatedCacheCalls
            | Self::ExternalCalls => Unit::Count,
            Self::Memory | Self::Allocated | Self::Retained | Self::ResponseBytes => Unit::Bytes,
            Self::QueryTime
            | Self::SlowQuery
            | Self::ConnectionWait
            | Self::CacheTime
            | Self::ExternalTime
            | Self::ExternalTimeout
            | Self::TotalTime
            | Self::SlowRequest
            | Self::PollTime
            | Self::BodyIdle => Unit::Time,
        }
    }

    /// Whether a limit given as a bare value cuts the work.
    pub(crate) const fn is_hard_by_default(self) -> bool {
        matches!(self, Self::TotalTime | Self::ExternalTimeout | Self::BodyIdle)
    }

    /// The words that follow the number in a message: "21 **queries**, limit 20".
    pub(crate) const fn phrase(self, one: bool) -> &'static str {
        match (self, one) {
            (Self::Queries, true) => "query",
            (Self::Queries, false) => "queries",
            (Self::RepeatedQueries, true) => "execution of the same statement",
            (Self::RepeatedQueries, false) => "executions of the same statement",
            (Self::Writes, true) => "statement that writes",
            (Self::Writes, false) => "statements that write",
            (Self::Rows, true) => "row",
            (Self::Rows, false) => "rows",
            (Self::Transactions, true) => "transaction",
            (Self::Transactions, false) => "transactions",
            (Self::CacheCalls, true) => "cache call",
            (Self::CacheCalls, false) => "cache calls",
            (Self::RepeatedCacheCalls, true) => "cache call of the same kind",
            (Self::RepeatedCacheCalls, false) => "cache calls of the same kind",
            (Self::CacheTime, _) => "waiting for caches",
            (Self::ExternalCalls, true) => "external call",
            (Self::ExternalCalls, false) => "external calls",
            (Self::QueryTime, _) => "of query time",
            (Self::SlowQuery, _) => "in one statement",
            (Self::ConnectionWait, _) => "waiting for connections",
            (Self::Memory, _) => "of memory at peak",
            (Self::Allocated, _) => "allocated",
            (Self::Retained, _) => "retained",
            (Self::ExternalTime, _) => "in external calls",
            (Self::ExternalTimeout, _) => "in one external call",
            (Self::TotalTime | Self::SlowRequest, _) => "in total",
            (Self::PollTime, _) => "in one poll",
            (Self::ResponseBytes, _) => "of response body",
            (Self::BodyIdle, _) => "without a piece of the body",
        }
    }

    /// Its index in arrays with an element for each resource.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Converts a number as the meter stores it into a quantity of this resource.
    pub(crate) const fn amount(self, raw: u64) -> Amount {
        match self.unit() {
            Unit::Count => Amount::Count(raw),
            Unit::Bytes => Amount::Bytes(raw),
            Unit::Time => Amount::Time(Duration::from_nanos(raw)),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The unit of a [`Resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Time; microseconds in events, seconds where it is serialised.
    Time,
}

impl Unit {
    /// The stable name, as in events: "count", "bytes" or "us".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Time => "us",
        }
    }
}

/// A quantity of a [`Resource`], in its unit.
///
/// Its `Display` has the unit; it is serialised as a plain number: a count, bytes, or seconds.
///
/// # Examples
///
/// ```
/// use request_budget::resource::Amount;
///
/// assert_eq!(Amount::Count(21).to_string(), "21");
/// assert_eq!(Amount::Bytes(8 << 20).to_string(), "8.0 MiB");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "one variant a unit, to be matched whole")]
pub enum Amount {
    /// A number of things.
    Count(u64),
    /// Bytes.
    Bytes(u64),
    /// Time.
    Time(Duration),
}

impl Amount {
    /// The plain number that events carry: a count, bytes, or whole microseconds.
    #[must_use]
    pub fn as_event_value(self) -> u64 {
        match self {
            Self::Count(n) | Self::Bytes(n) => n,
            Self::Time(time) => u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn is_one(self) -> bool {
        self == Self::Count(1)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Bytes(n) => write!(f, "{}", ByteSize::b(n)),
            Self::Time(time) => write!(f, "{}", Time(time)),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Count(n) | Self::Bytes(n) => serializer.serialize_u64(n),
            Self::Time(time) => serializer.serialize_f64(time.as_secs_f64()),
        }
    }
}

/// Formats a duration with at most one decimal, and without one that is zero.
pub(crate) struct Time(pub(crate) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.1?}", self.0);
        match text.find(".0") {
            Some(at) => {
                let (number, rest) = text.split_at(at);
                write!(f, "{number}{}", rest.trim_start_matches(".0"))
            }
            None => f.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_the_position_in_all() {
        for (position, resource) in Resource::ALL.iter().enumerate() {
            assert_eq!(resource.index(), position, "{resource}");
        }
    }

    #[test]
    fn durations_print_short() {
        let print = |nanos| Time(Duration::from_nanos(nanos)).to_string();
        assert_eq!(print(0), "0ns");
        assert_eq!(print(500_000_000), "500ms");
        assert_eq!(print(1_000_000_000), "1s");
        assert_eq!(print(1_234_567), "1.2ms");
        assert_eq!(print(10_049_000), "10ms");
    }
}
