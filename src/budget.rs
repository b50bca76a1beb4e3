//! The limits of one unit of work.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::escape::Escaped;
use crate::key::Key;
use crate::limit::Limit;
use crate::resource::{Amount, Resource};
use crate::time::nanos;
use crate::violation::Line;

/// The limits for one unit of work: an HTTP request or a background task.
///
/// There is no limit unless it is named. A bare value is a soft limit, which reports when it is
/// crossed; for [`total_time`](Self::total_time), [`external_timeout`](Self::external_timeout) and
/// [`body_idle`](Self::body_idle) it is a hard one, which also cuts the work. See [`Limit`] to say
/// which, or both.
///
/// Cloning is cheap: clones share the limits.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use request_budget::{Budget, Limit, Resource};
///
/// let web = Budget::new()
///     .queries(20)
///     .query_time(Duration::from_millis(200))
///     .memory(Limit::soft(8 << 20).and_hard(64 << 20))
///     .total_time(Duration::from_secs(1));
///
/// assert!(web.limit(Resource::TotalTime).is_some_and(|limit| limit.is_hard()));
/// assert!(web.limit(Resource::Rows).is_none());
/// assert_eq!(
///     web.to_string(),
///     "queries 20, query_time 200ms, memory 8.0 MiB (64.0 MiB hard), total_time 1s (hard)"
/// );
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[must_use = "a budget does nothing until work runs under it"]
pub struct Budget {
    limits: Option<Arc<Limits>>,
}

impl Budget {
    /// Creates a budget without limits: everything is counted, and nothing is ever exceeded.
    pub const fn new() -> Self {
        Self { limits: None }
    }

    /// Whether it shares its limits with this one.
    #[inline]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.limits, &other.limits) {
            (Some(this), Some(other)) => Arc::ptr_eq(this, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether dropping this one frees no limits.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.limits.as_ref().is_none_or(|limits| Arc::strong_count(limits) > 1)
    }

    /// Statement executions that reach a driver; soft by default.
    ///
    /// A failed or cancelled execution counts, and each MongoDB command is one. `BEGIN`, `COMMIT`,
    /// `ROLLBACK` and savepoints are [`transactions`](Self::transactions) instead.
    pub fn queries(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Queries, limit)
    }

    /// Executions of one and the same statement text (an N+1); soft by default.
    pub fn repeated_queries(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::RepeatedQueries, limit)
    }

    /// Another limit for one statement, lower or higher than
    /// [`repeated_queries`](Self::repeated_queries), which holds for all others; soft by default.
    ///
    /// Use it for a statement that is repeated on purpose, such as the tick of a queue or an insert
    /// for each line of a file. The statement is identified by its text, exactly as the program
    /// passes it to the driver, on any database. `u64::MAX` allows any number of executions.
    /// [`Usage::repeated_queries`](crate::Usage::repeated_queries) still counts it.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use request_budget::{Budget, BudgetExt, Limit, db::Query};
    ///
    /// const TICK: &str = "UPDATE jobs SET seen = now() WHERE id = $1";
    ///
    /// let budget = Budget::new().repeated_queries(Limit::hard(1)).repeated_queries_for(TICK, 100);
    /// let work = async {
    ///     for _ in 0..100 {
    ///         Query::start(TICK).unwrap();
    ///     }
    ///     Query::start("SELECT name FROM users WHERE id = $1").unwrap();
    ///     Query::start("SELECT name FROM users WHERE id = $1").unwrap_err();
    /// };
    /// assert!(work.budgeted("import", budget).await.is_err());
    /// # }
    /// ```
    pub fn repeated_queries_for(
        mut self,
        statement: impl Into<Cow<'static, str>>,
        limit: impl Into<Limit<u64>>,
    ) -> Self {
        let text = statement.into();
        let key = Key::of(&text);
        let limit = limit.into().resolve(Resource::RepeatedQueries.is_hard_by_default());
        let bounds = Bounds::new(limit.soft_value(), limit.hard_value());
        let limits = Arc::make_mut(self.limits.get_or_insert_default());
        limits.repetitions.retain(|other| other.key != key);
        limits.repetitions.push(Repetitions { text, key, bounds });
        self
    }

    /// Statements that change data or schema; soft by default.
    ///
    /// A write is recognised by its first words, after comments, and in and after `WITH`: `INSERT`,
    /// `UPDATE`, `CREATE` and the like. Changes by a function that a `SELECT` calls are not
    /// recognised. A limit of 0 states that a GET request does not write.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use request_budget::{Budget, BudgetExt, Limit, Usage, db::Query};
    ///
    /// let work = async {
    ///     Query::start("SELECT name FROM posts").unwrap();
    ///     let refused = Query::start("UPDATE posts SET views = views + 1").unwrap_err();
    ///     assert!(refused.to_string().ends_with("limit 0: `UPDATE posts SET views = views + 1`"));
    /// };
    /// let reads_only = Budget::new().writes(Limit::hard(0));
    /// assert!(work.budgeted("GET /posts", reads_only).await.is_err());
    /// # }
    /// ```
    pub fn writes(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Writes, limit)
    }

    /// Rows handed to the caller (an unbounded SELECT); soft by default.
    pub fn rows(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Rows, limit)
    }

    /// Transactions and savepoints begun; soft by default.
    pub fn transactions(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Transactions, limit)
    }

    /// Time spent waiting for drivers, added up; soft by default.
    ///
    /// Concurrent statements add up, so it can be more than the time that passed.
    pub fn query_time(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::QueryTime, limit)
    }

    /// Time spent waiting for any single statement; soft by default.
    ///
    /// It is the wait of this work, not the time of the server: rows that have arrived before they
    /// are asked for take no time.
    pub fn slow_query(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::SlowQuery, limit)
    }

    /// Time spent waiting for a connection from a pool, added up; soft by default.
    pub fn connection_wait(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::ConnectionWait, limit)
    }

    /// Round trips to a cache; soft by default.
    ///
    /// Commands on a connection of the feature `redis`; a pipeline is one. They are apart from
    /// [`queries`](Self::queries).
    pub fn cache_calls(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::CacheCalls, limit)
    }

    /// Round trips to a cache by one and the same kind of command (an N+1), such as `GET user:*`;
    /// soft by default.
    pub fn repeated_cache_calls(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::RepeatedCacheCalls, limit)
    }

    /// Time spent waiting for caches, added up; soft by default.
    pub fn cache_time(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::CacheTime, limit)
    }

    /// Peak of live bytes; soft by default. Needs the
    /// [`CountingAllocator`](crate::alloc::CountingAllocator).
    ///
    /// Checked at the end of each poll. Not counted: what other threads allocate for this work
    /// unless it was carried there, the worker threads of sqlx's SQLite driver among them.
    pub fn memory(self, bytes: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Memory, bytes)
    }

    /// Bytes allocated, freed again or not; soft by default. Needs the
    /// [`CountingAllocator`](crate::alloc::CountingAllocator).
    pub fn allocated(self, bytes: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Allocated, bytes)
    }

    /// Bytes still live when the work has ended; soft by default. Needs the
    /// [`CountingAllocator`](crate::alloc::CountingAllocator).
    ///
    /// For work that keeps only a little, but with each run, there is
    /// [`Growth`](crate::report::Growth).
    pub fn retained(self, bytes: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::Retained, bytes)
    }

    /// Calls marked with [`external`](crate::ExternalExt::external); soft by default.
    pub fn external_calls(self, limit: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::ExternalCalls, limit)
    }

    /// Time spent in calls to external systems, added up; soft by default.
    pub fn external_time(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::ExternalTime, limit)
    }

    /// The longest that each call to an external system may take; **hard** by default: the call
    /// is dropped and its caller gets an error. It is never given more than is left of
    /// [`total_time`](Self::total_time).
    pub fn external_timeout(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::ExternalTimeout, limit)
    }

    /// Another timeout for the calls of this name, shorter or longer than
    /// [`external_timeout`](Self::external_timeout); hard.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use std::time::Duration;
    /// use request_budget::{Budget, BudgetExt, ExternalExt};
    /// use tokio::time::sleep;
    ///
    /// let budget = Budget::new()
    ///     .external_timeout(Duration::from_millis(500))
    ///     .external_timeout_for("reports", Duration::from_secs(10));
    /// let work = async {
    ///     let (payments, reports) = (sleep(Duration::from_secs(2)), sleep(Duration::from_secs(2)));
    ///     (payments.external("payments").await.is_ok(), reports.external("reports").await.is_ok())
    /// };
    /// assert_eq!(work.budgeted("order", budget).await, Ok((false, true)));
    /// # }
    /// ```
    pub fn external_timeout_for(
        mut self,
        name: impl Into<Cow<'static, str>>,
        timeout: Duration,
    ) -> Self {
        let (name, nanos) = (name.into(), nanos(timeout));
        let key = Key::of(&name);
        let limits = Arc::make_mut(self.limits.get_or_insert_default());
        limits.external_timeouts.retain(|other| other.key != key);
        limits.external_timeouts.push(NamedTimeout { name, key, nanos });
        self
    }

    /// Wall time from the start to the end of the work, of a request to the end of its response
    /// body; **hard** by default: the work is cut.
    ///
    /// The work is polled before the clock is checked, so an answer that is ready is never
    /// discarded. A cut never comes early, and at most 5 ms late, because the deadlines of a thread
    /// share one timer.
    ///
    /// A response body can be cut only when the server polls it for its next frame, which it does
    /// not while the client reads nothing: bound that by the timeouts of the server.
    pub fn total_time(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::TotalTime, limit)
    }

    /// Wall time beyond which the work is reported as slow when it ends; soft by default.
    pub fn slow_request(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::SlowRequest, limit)
    }

    /// The longest single poll (a handler that blocks the executor); soft by default.
    ///
    /// # Performance
    ///
    /// Polls are timed only where this limit is set: two readings of the clock a poll.
    pub fn poll_time(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::PollTime, limit)
    }

    /// Bytes of response body handed to the server; soft by default.
    pub fn response_bytes(self, bytes: impl Into<Limit<u64>>) -> Self {
        self.count(Resource::ResponseBytes, bytes)
    }

    /// The longest wait for the next frame of a response body; **hard** by default: the body ends
    /// with an error.
    ///
    /// Only the time that the server waits for the body counts, not what the client takes to read.
    pub fn body_idle(self, limit: impl Into<Limit<Duration>>) -> Self {
        self.time(Resource::BodyIdle, limit)
    }

    /// Ends the clock of [`total_time`](Self::total_time) and [`slow_request`](Self::slow_request)
    /// at the headers of the response, for bodies that are meant to last: server-sent events,
    /// downloads.
    ///
    /// Bound such a body by [`body_idle`](Self::body_idle), or not at all. An exchange that is
    /// upgraded (WebSocket) has no body after the headers: give what runs then a budget of its own,
    /// with [`budgeted`](crate::BudgetExt::budgeted).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::extract::{MatchedPath, Request};
    /// use request_budget::{Budget, BudgetLayer};
    ///
    /// let web = Budget::new().total_time(Duration::from_secs(1));
    /// let events = web.clone().until_headers().body_idle(Duration::from_secs(30));
    /// let layer = BudgetLayer::new(move |request: &Request| {
    ///     match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
    ///         Some("/events") => events.clone(),
    ///         _ => web.clone(),
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn until_headers(mut self) -> Self {
        Arc::make_mut(self.limits.get_or_insert_default()).end_at_headers = true;
        self
    }

    /// How long work that was cut, or dropped because a client hung up, may continue until its
    /// MongoDB commands in flight are complete; 5 seconds unless set.
    ///
    /// Calls of the MongoDB driver must not be dropped midway. So the client is answered at once,
    /// and the rest of the request is polled in a task of its own until none of its commands is in
    /// flight. A background task that is cut ends that much later. Then, or after this time, the
    /// work is dropped. Its report follows at that moment and contains all of its usage, except
    /// that `total_time` stops at the cut.
    ///
    /// A handler that executes its commands one after the other stops before its next command. One
    /// that executes several at a time starts new ones while others are in flight, and may complete
    /// all of its work within this time; what is in flight after that is dropped midway after all.
    ///
    /// If the program has no MongoDB client of this crate, or no command is in flight, the work is
    /// dropped at once.
    pub fn grace_period(mut self, longest: Duration) -> Self {
        Arc::make_mut(self.limits.get_or_insert_default()).grace = longest;
        self
    }

    /// Replaces some limits for a known reason: for work that exceeds the usual budget and is going
    /// to be repaired.
    ///
    /// An exemption needs a limit of its own, so that the work cannot get worse meanwhile. The
    /// reason is the address of the issue. The ratchet of `testing` lists it.
    ///
    /// # Panics
    ///
    /// Panics if the reason is blank, or if the replacement has no limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use request_budget::{Budget, Limit, Resource, resource::Amount};
    ///
    /// let web = Budget::new().queries(20).rows(1_000);
    /// let issue = "https://github.com/acme/shop/issues/7";
    /// let report = web.exempt(issue, Budget::new().queries(150));
    /// assert_eq!(report.limit(Resource::Queries), Some(Limit::soft(Amount::Count(150))));
    /// assert_eq!(report.limit(Resource::Rows), Some(Limit::soft(Amount::Count(1_000))));
    /// ```
    #[expect(clippy::needless_pass_by_value, reason = "budgets are passed by value everywhere")]
    pub fn exempt(mut self, reason: impl Into<Cow<'static, str>>, limits: Self) -> Self {
        let reason = reason.into();
        assert!(!reason.trim().is_empty(), "an exemption needs a reason: the address of an issue");
        let new = limits.limits();
        let own = Arc::make_mut(self.limits.get_or_insert_default());
        let mut limits_any = !new.external_timeouts.is_empty() || !new.repetitions.is_empty();
        for (own, new) in own.bounds.iter_mut().zip(new.bounds).filter(|(_, new)| new.is_any()) {
            *own = new;
            limits_any = true;
        }
        assert!(limits_any, "an exemption needs a new limit");
        for statement in &new.repetitions {
            own.repetitions.retain(|other| other.key != statement.key);
            own.repetitions.push(statement.clone());
        }
        for timeout in &new.external_timeouts {
            own.external_timeouts.retain(|other| other.key != timeout.key);
            own.external_timeouts.push(timeout.clone());
        }
        own.exemption = Some(reason);
        self
    }

    /// The limit on a resource, if there is one.
    #[must_use]
    pub fn limit(&self, resource: Resource) -> Option<Limit<Amount>> {
        let limits = self.limits();
        let amount = |raw: u64| (raw != NONE).then(|| resource.amount(raw));
        Limit::from_values(amount(limits.soft(resource)), amount(limits.hard(resource)))
    }

    /// Lowers the total time to this much.
    #[cfg(feature = "http")]
    pub(crate) fn shorten_total_time(self, most: Duration) -> Self {
        let before = self.limits().hard(Resource::TotalTime);
        let soft = self.limits().soft(Resource::TotalTime);
        let soft = (soft != NONE).then_some(soft);
        self.set(Resource::TotalTime, soft, Some(nanos(most).min(before)))
    }

    /// Lowers the total time to what the caller has left.
    #[cfg(feature = "http")]
    pub(crate) fn shorten_total_time_for_caller(self, most: Duration) -> Self {
        if nanos(most) >= self.limits().hard(Resource::TotalTime) {
            return self;
        }
        let mut budget = self.shorten_total_time(most);
        if let Some(limits) = &mut budget.limits {
            Arc::make_mut(limits).is_caller_deadline = true;
        }
        budget
    }

    /// Subtracts the time that has already passed from the total time, if that is limited.
    #[cfg(feature = "http")]
    pub(crate) fn charge_total_time(self, passed: Duration) -> Self {
        match self.limits().hard_time(Resource::TotalTime) {
            Some(total) => self.shorten_total_time(total.saturating_sub(passed)),
            None => self,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.limits.as_deref().unwrap_or(Limits::UNLIMITED)
    }

    fn count(self, resource: Resource, limit: impl Into<Limit<u64>>) -> Self {
        let limit = limit.into().resolve(resource.is_hard_by_default());
        self.set(resource, limit.soft_value(), limit.hard_value())
    }

    fn time(self, resource: Resource, limit: impl Into<Limit<Duration>>) -> Self {
        let limit = limit.into().resolve(resource.is_hard_by_default());
        self.set(resource, limit.soft_value().map(nanos), limit.hard_value().map(nanos))
    }

    fn set(mut self, resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Self {
        let limits = Arc::make_mut(self.limits.get_or_insert_default());
        limits.bounds[resource.index()] = Bounds::new(soft, hard);
        limits.lowest_wall_time = limits.find_lowest_wall_time();
        self
    }
}

/// The limits that it names: "queries 20, memory 8.0 MiB (64.0 MiB hard), total_time 1s (hard)".
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = self.limits();
        let named = |&resource: &Resource| Some(format!("{resource} {}", self.limit(resource)?));
        let mut all: Vec<_> = Resource::ALL.iter().filter_map(named).collect();
        for statement in &limits.repetitions {
            let limit = statement.bounds.as_limit();
            let limit = limit.map_or_else(|| String::from("any"), |limit| limit.to_string());
            all.push(format!("repeated_queries of `{}` {limit}", Line(&statement.text)));
        }
        for NamedTimeout { name, nanos, .. } in &limits.external_timeouts {
            let timeout = Resource::ExternalTimeout.amount(*nanos);
            all.push(format!("external_timeout of {name:?} {timeout} (hard)"));
        }
        if all.is_empty() {
            all.push("no limits".to_owned());
        }
        if limits.end_at_headers {
            all.push("until headers".to_owned());
        }
        if let Some(reason) = limits.exemption.as_deref() {
            all.push(format!("exempt because of {}", Escaped(reason)));
        }
        f.write_str(&all.join(", "))
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("Budget");
        for &resource in Resource::ALL {
            if let Some(limit) = self.limit(resource) {
                all.field(resource.name(), &limit);
            }
        }
        if self.limits().end_at_headers {
            all.field("until_headers", &true);
        }
        for Repetitions { text, bounds, .. } in &self.limits().repetitions {
            all.field(&format!("repeated_queries_for({text:?})"), &bounds.as_limit());
        }
        for NamedTimeout { name, nanos, .. } in &self.limits().external_timeouts {
            all.field(&format!("external_timeout_for({name:?})"), &Duration::from_nanos(*nanos));
        }
        if self.limits().grace != Limits::UNLIMITED.grace {
            all.field("grace_period", &self.limits().grace);
        }
        if let Some(reason) = self.limits().exemption.as_deref() {
            all.field("exempt", &reason);
        }
        all.finish()
    }
}

/// Stands for "no limit": nothing counted in 64 bits is ever more.
pub(crate) const NONE: u64 = u64::MAX;

/// The limits as the meter compares them: counts, bytes and nanoseconds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    bounds: [Bounds; Resource::COUNT],
    /// The lowest limit on wall time, of any kind: each request needs it at its end.
    pub(crate) lowest_wall_time: Option<Duration>,
    /// Whether the limits on wall time end at the headers of a response.
    pub(crate) end_at_headers: bool,
    /// Whether the hard limit on wall time is a deadline of the caller.
    pub(crate) is_caller_deadline: bool,
    /// How long work that was ended may continue until its MongoDB commands in flight are complete.
    pub(crate) grace: Duration,
    /// Limits on the repetitions of single statements, in place of the general one.
    repetitions: Vec<Repetitions>,
    /// Timeouts for calls of single names, in place of the general one.
    external_timeouts: Vec<NamedTimeout>,
    /// Why these are not the usual limits.
    exemption: Option<Cow<'static, str>>,
}

/// The limits on one resource, which are always read together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The limits on the executions of one statement.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Repetitions {
    pub(crate) text: Cow<'static, str>,
    key: Key,
    pub(crate) bounds: Bounds,
}

impl Bounds {
    fn new(soft: Option<u64>, hard: Option<u64>) -> Self {
        Self { soft: soft.unwrap_or(NONE), hard: hard.unwrap_or(NONE) }
    }

    /// Whether there is one.
    fn is_any(self) -> bool {
        self.soft != NONE || self.hard != NONE
    }

    fn as_limit(self) -> Option<Limit<u64>> {
        let value = |raw: u64| (raw != NONE).then_some(raw);
        Limit::from_values(value(self.soft), value(self.hard))
    }
}

#[derive(Clone, PartialEq, Eq)]
struct NamedTimeout {
    name: Cow<'static, str>,
    key: Key,
    nanos: u64,
}

impl Limits {
    const UNLIMITED: &Self = &Self {
        bounds: [Bounds { soft: NONE, hard: NONE }; Resource::COUNT],
        lowest_wall_time: None,
        end_at_headers: false,
        is_caller_deadline: false,
        grace: Duration::from_secs(5),
        repetitions: Vec::new(),
        external_timeouts: Vec::new(),
        exemption: None,
    };

    pub(crate) fn on(&self, resource: Resource) -> Bounds {
        self.bounds[resource.index()]
    }

    pub(crate) fn soft(&self, resource: Resource) -> u64 {
        self.bounds[resource.index()].soft
    }

    pub(crate) fn hard(&self, resource: Resource) -> u64 {
        self.bounds[resource.index()].hard
    }

    /// The limits on the executions of one statement.
    pub(crate) fn on_repetitions(&self, statement: Key) -> Bounds {
        // The limit holds for the text on any database.
        let is_it = |other: &&Repetitions| other.key.raw() == statement.raw();
        let named = self.repetitions.iter().find(is_it);
        named.map_or(self.bounds[Resource::RepeatedQueries.index()], |named| named.bounds)
    }

    /// The statements that have limits of their own on their executions.
    #[cfg(feature = "testing")]
    pub(crate) fn repetitions(&self) -> &[Repetitions] {
        &self.repetitions
    }

    /// Whether there is a hard limit on the executions of any statement.
    pub(crate) fn hard_limits_repetitions(&self) -> bool {
        let is_hard = |named: &Repetitions| named.bounds.hard != NONE;
        self.hard_limits(Resource::RepeatedQueries) || self.repetitions.iter().any(is_hard)
    }

    /// The hard limit as a duration, where there is one.
    pub(crate) fn hard_time(&self, resource: Resource) -> Option<Duration> {
        let raw = self.hard(resource);
        (raw != NONE).then(|| Duration::from_nanos(raw))
    }

    fn find_lowest_wall_time(&self) -> Option<Duration> {
        let times = [Resource::TotalTime, Resource::SlowRequest];
        let all = times.iter().flat_map(|time| [self.soft(*time), self.hard(*time)]);
        all.filter(|nanos| *nanos != NONE).min().map(Duration::from_nanos)
    }

    /// The most nanoseconds that a call of this name may take.
    pub(crate) fn external_timeout(&self, name: Key) -> u64 {
        let named = self.external_timeouts.iter().find(|timeout| timeout.key == name);
        named.map_or(self.hard(Resource::ExternalTimeout), |timeout| timeout.nanos)
    }

    /// Why these are not the usual limits.
    #[cfg(feature = "testing")]
    pub(crate) fn exemption(&self) -> Option<&str> {
        self.exemption.as_deref()
    }

    /// Whether there is a hard limit on this resource.
    pub(crate) fn hard_limits(&self, resource: Resource) -> bool {
        self.hard(resource) != NONE
    }

    /// Whether there is any limit on this resource.
    pub(crate) fn names(&self, resource: Resource) -> bool {
        let of_one = resource == Resource::RepeatedQueries && !self.repetitions.is_empty();
        self.bounds[resource.index()].is_any() || of_one
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::UNLIMITED.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_value_takes_the_kind_of_its_resource() {
        let budget = Budget::new().queries(20).total_time(Duration::from_secs(1));
        assert_eq!(budget.limit(Resource::Queries), Some(Limit::soft(Amount::Count(20))));
        let second = Amount::Time(Duration::from_secs(1));
        assert_eq!(budget.limit(Resource::TotalTime), Some(Limit::hard(second)));
    }

    #[test]
    fn a_later_limit_replaces_the_earlier_one() {
        let budget = Budget::new().queries(Limit::soft(1).and_hard(2)).queries(Limit::hard(3));
        assert_eq!(budget.limit(Resource::Queries), Some(Limit::hard(Amount::Count(3))));
    }

    #[test]
    fn an_exemption_replaces_what_it_limits_and_keeps_the_rest() {
        let web = Budget::new().queries(Limit::soft(20).and_hard(200)).rows(5);
        let exempt = web.exempt("issue 7", Budget::new().queries(50));
        assert_eq!(exempt.limit(Resource::Queries), Some(Limit::soft(Amount::Count(50))));
        assert_eq!(exempt.limit(Resource::Rows), Some(Limit::soft(Amount::Count(5))));
        assert!(format!("{exempt:?}").ends_with("exempt: \"issue 7\" }"), "{exempt:?}");
        let wider = Budget::new().external_timeout_for("mail", Duration::from_secs(9));
        let exempt = Budget::new()
            .external_timeout_for("mail", Duration::from_secs(1))
            .exempt("issue 8", wider.clone());
        let timeout = |budget: &Budget| budget.limits().external_timeout(Key::of("mail"));
        assert_eq!(timeout(&exempt), timeout(&wider));
    }

    #[test]
    fn one_statement_has_a_limit_of_its_own() {
        let budget = Budget::new()
            .repeated_queries(5)
            .repeated_queries_for("SELECT 1", 1)
            .repeated_queries_for("SELECT 1", Limit::soft(7).and_hard(70))
            .repeated_queries_for("SELECT 'a\n b'", u64::MAX);
        let printed = "repeated_queries 5, repeated_queries of `SELECT 1` 7 (70 hard), \
                       repeated_queries of `SELECT 'a b'` any";
        assert_eq!(budget.to_string(), printed);
        let on = |budget: &Budget, text| {
            let bounds = budget.limits().on_repetitions(Key::of(text));
            (bounds.soft, bounds.hard)
        };
        assert_eq!(on(&budget, "SELECT 1"), (7, 70));
        assert_eq!(on(&budget, "SELECT 2"), (5, NONE));
        assert_eq!(on(&budget, "SELECT 'a\n b'"), (NONE, NONE));
        assert!(!Budget::new().repeated_queries(5).limits().hard_limits_repetitions());
        assert!(budget.limits().hard_limits_repetitions());

        let exempt = budget.exempt("issue 7", Budget::new().repeated_queries_for("SELECT 1", 9));
        assert_eq!((on(&exempt, "SELECT 1"), on(&exempt, "SELECT 2")), ((9, NONE), (5, NONE)));
        let alone = Budget::new().repeated_queries_for("SELECT 1", 9);
        assert!(alone.limits().names(Resource::RepeatedQueries));
        assert_eq!(alone.limit(Resource::RepeatedQueries), None);
    }

    #[test]
    #[should_panic(expected = "an exemption needs a reason")]
    fn an_exemption_without_a_reason_is_none() {
        drop(Budget::new().exempt(" ", Budget::new().queries(50)));
    }

    #[test]
    #[should_panic(expected = "an exemption needs a new limit")]
    fn an_exemption_without_a_limit_is_none() {
        drop(Budget::new().queries(1).exempt("issue 7", Budget::new()));
    }

    #[test]
    fn zero_is_a_limit() {
        let budget = Budget::new().queries(0);
        assert_eq!(budget.limit(Resource::Queries), Some(Limit::soft(Amount::Count(0))));
    }

    #[test]
    fn debug_names_only_what_is_limited() {
        let budget = Budget::new().queries(20);
        assert_eq!(format!("{budget:?}"), "Budget { queries: Limit(Soft(Count(20))) }");
    }
}
