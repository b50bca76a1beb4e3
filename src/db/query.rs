//! One execution of a statement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::begun::Begun;
use crate::deadline::Refusal;
use crate::error::Cut;
use crate::meter::recording::{self, Kind, Recorded};
use crate::meter::table::Key;
use crate::meter::{Meter, Suspect};
use crate::report::elsewhere::{note_unattributed, unattributed};
use crate::report::unmeasured::statements_are_metered;
use crate::resource::Resource;
use crate::scope;
use crate::time::Instant;

/// One execution of a statement, from [`start`](Self::start) until it is dropped.
///
/// It is charged to the unit of work that is running where it is started, and to all that this one
/// runs inside. The time until the drop counts as query time, less what is between
/// [`pause`](Self::pause) and [`resume`](Self::resume).
///
/// See the [module docs](crate::db) for an example.
///
/// # Cancellation
///
/// If it is dropped early, it is counted, with the time until then.
#[must_use = "the time of a query ends when it is dropped"]
pub struct Query {
    meter: Option<Arc<Meter>>,
    key: Key,
    waiting_since: Option<Instant>,
    waited: Duration,
    recorded: Recorded,
}

impl Query {
    /// Counts an execution of this statement and starts its clock.
    ///
    /// Call it directly before the statement is sent, after a connection was acquired. Pass the
    /// text without values, because it identifies repeated statements and appears in violations.
    ///
    /// # Errors
    ///
    /// Refuses, without counting it, a statement that would cross a hard limit, and every statement
    /// after such a crossing: do not send it then. The unit of work can be cut only when its future
    /// returns, so do not retry before it has returned; in async code [`begin`](Self::begin)
    /// ensures that.
    pub fn start(statement: &str) -> Result<Self, Cut> {
        Self::start_as(Kind::Shape, Key::of(statement), statement, Begun::now())
    }

    /// As [`start`](Self::start), for clients whose calls are futures.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), but before a refusal the future returns `Pending` once and wakes
    /// its task. The work is cut at the end of a poll, which a loop that retries until it succeeds
    /// would otherwise never reach.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use request_budget::{Budget, BudgetExt, Limit, Resource, db::Query};
    ///
    /// let work = async {
    ///     // Retries until the key exists, which it never does.
    ///     loop {
    ///         drop(Query::begin("GET user:*").await);
    ///     }
    /// };
    /// let cut = work.budgeted("poll", Budget::new().queries(Limit::hard(20))).await.unwrap_err();
    /// assert_eq!(cut.violation().resource, Resource::Queries);
    /// # }
    /// ```
    pub async fn begin(statement: &str) -> Result<Self, Cut> {
        match Self::start(statement) {
            Ok(query) => Ok(query),
            Err(cut) => Err(Refusal::new(cut).await),
        }
    }

    /// As `start`, for a statement of this kind whose wait has just begun.
    pub(crate) fn start_as(
        kind: Kind,
        key: Key,
        statement: &str,
        begun: Begun,
    ) -> Result<Self, Cut> {
        statements_are_metered();
        let (meter, waiting_since) = begun.parts();
        let recorded = if let Some(meter) = &meter {
            meter.take_statement(key, statement)?;
            meter.record(kind, Some(statement))
        } else {
            note_unattributed();
            recording::record_elsewhere(kind, Some(statement))
        };
        recorded.set_database(key.database());
        if let (Some(meter), Some(since)) = (&meter, waiting_since) {
            let pending = scope::allocated_in_poll();
            meter.each(|meter| meter.begin_statement_wait(key, since, pending));
        }
        recorded.open();
        Ok(Self { meter, key, waiting_since, waited: Duration::ZERO, recorded })
    }

    /// How many statements this process has executed where no unit of work was running.
    ///
    /// They are in no report. A high number means that work escapes its budget: a task that was
    /// spawned without [`in_current_budget`](crate::BudgetExt::in_current_budget), or one without
    /// any budget. If a budget limits statements, and all statements of its work seem to be among
    /// these, one event for each name warns of that.
    #[must_use]
    pub fn unattributed() -> u64 {
        unattributed()
    }

    /// Adds rows, documents or values that were returned to the caller.
    pub fn add_rows(&mut self, rows: u64) {
        self.charge(|meter, key| meter.add(Resource::Rows, rows, Suspect::Statement(key)));
        self.recorded.add_rows(rows);
    }

    /// Stops the clock, because a result has arrived and the caller is using it.
    pub fn pause(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            self.waited = self.waited.saturating_add(since.elapsed());
            let pending = scope::allocated_in_poll();
            self.charge(|meter, key| meter.end_statement_wait(key, pending));
        }
    }

    /// Starts the clock again, because the caller is waiting for the next result.
    pub fn resume(&mut self) {
        if self.meter.is_some() && self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            let pending = scope::allocated_in_poll();
            self.charge(|meter, key| meter.begin_statement_wait(key, now, pending));
        }
    }

    /// Whether the work that is waiting for it is being dropped or cut.
    #[cfg(feature = "sqlx")]
    pub(crate) fn is_abandoned(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.is_abandoned())
    }

    /// Counts one more statement of a batch that was sent as one text.
    ///
    /// It has been executed, but past a hard limit its result is withheld.
    #[cfg(feature = "sqlx")]
    pub(crate) fn count_next_of_batch(&mut self) -> Result<(), Cut> {
        self.charge(|meter, key| meter.add(Resource::Queries, 1, Suspect::Statement(key)));
        self.recorded.add_one();
        let mut chain = self.meter.iter().flat_map(|meter| meter.chain());
        chain.find_map(|meter| meter.refuse_answer()).map_or(Ok(()), Err)
    }

    /// Whether this many more rows would cross a limit.
    #[cfg(feature = "sqlx")]
    pub(crate) fn crosses_with_rows(&self, rows: u64) -> bool {
        let crosses = |meter: &Meter| {
            let limits = meter.limits();
            let limit = limits.soft(Resource::Rows).min(limits.hard(Resource::Rows));
            meter.used(Resource::Rows).saturating_add(rows) > limit
        };
        self.meter.iter().flat_map(|meter| meter.chain()).any(|meter| crosses(&meter))
    }

    fn charge(&self, charge: impl Fn(&Meter, Key)) {
        if let Some(meter) = &self.meter {
            meter.each(|meter| charge(meter, self.key));
        }
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        let since = self.waiting_since.take();
        if let Some(since) = since {
            self.waited = self.waited.saturating_add(since.elapsed());
        }
        let pending = scope::allocated_in_poll();
        self.charge(|meter, key| {
            if since.is_some() {
                meter.end_statement_wait(key, pending);
            }
            meter.add_statement_time(Some(key), self.waited);
        });
        self.recorded.add_time(self.waited);
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("waited", &self.waited).finish_non_exhaustive()
    }
}
