//! What one unit of work has used, and the first crossing of each of its limits.

#[cfg(feature = "mongodb")]
mod in_flight;
pub(crate) mod table;

use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::Span;

use crate::budget::{Budget, Limits};
use crate::error::Cut;
use crate::memory::{self, Delta};
use crate::report::{self, Name, Reporter};
use crate::resource::Resource;
use crate::time::{Instant, nanos};
use crate::usage::Usage;
use crate::violation::{Cause, Severity, Violation};
#[cfg(feature = "mongodb")]
use in_flight::InFlight;
use table::{Entry, Key, Table};

/// The account of one unit of work.
///
/// Shared by the threads on which the work runs; nothing is published through the numbers, so all of
/// them are `Relaxed`.
#[derive(Debug)]
pub(crate) struct Meter {
    budget: Budget,
    name: Name,
    reporter: Option<Arc<dyn Reporter>>,
    /// Where events go that come up outside every span.
    span: Span,
    started: Instant,
    /// The unit of work inside which this one runs; settled when it is first entered.
    parent: OnceLock<Option<Arc<Self>>>,
    used: [AtomicU64; Resource::COUNT],
    /// Live bytes. `Memory` in `used` is their peak.
    live: AtomicU64,
    busy: AtomicU64,
    unmetered: AtomicU64,
    /// How long the work waited before it was started, where that is known.
    queue_time: OnceLock<Duration>,
    /// Commands under way; charged with their time when they end.
    #[cfg(feature = "mongodb")]
    commands: InFlight,
    statements: Table,
    externals: Table,
    /// One bit a resource and severity: already reported.
    crossed: AtomicU64,
    cut: OnceLock<Cut>,
    refused: AtomicBool,
    abandoned: AtomicBool,
    /// The limits on the wall time have been checked, for good.
    timeless: AtomicBool,
}

/// What to name as the cause should a charge cross a limit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Suspect {
    Nobody,
    Statement(Key),
    /// The statement that ran most often.
    TopStatement,
    External(Key),
}

impl Meter {
    pub(crate) fn new(name: Name, budget: Budget, reporter: Option<Arc<dyn Reporter>>) -> Self {
        Self {
            budget,
            name,
            reporter,
            span: Span::current(),
            started: Instant::now(),
            parent: OnceLock::new(),
            used: [const { AtomicU64::new(0) }; Resource::COUNT],
            live: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            unmetered: AtomicU64::new(0),
            queue_time: OnceLock::new(),
            #[cfg(feature = "mongodb")]
            commands: InFlight::default(),
            statements: Table::default(),
            externals: Table::default(),
            crossed: AtomicU64::new(0),
            cut: OnceLock::new(),
            refused: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            timeless: AtomicBool::new(false),
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn reporter(&self) -> Option<&dyn Reporter> {
        self.reporter.as_deref()
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.budget.limits()
    }

    pub(crate) fn statements(&self) -> &Table {
        &self.statements
    }

    pub(crate) fn externals(&self) -> &Table {
        &self.externals
    }

    /// Notes how long the work waited before it was started.
    #[cfg(feature = "http")]
    pub(crate) fn set_queue_time(&self, waited: Duration) {
        self.queue_time.get_or_init(|| waited);
    }

    /// Settles inside which work this one runs. Only the first call counts.
    pub(crate) fn link(&self, parent: Option<Arc<Self>>) {
        self.parent.get_or_init(|| parent);
    }

    /// This account and all that it is charged to as well, from the inside out.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |meter| meter.parent.get()?.as_deref())
    }

    /// When the time of this work alone is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.timeless.load(Relaxed) {
            return None;
        }
        // A limit so long that the clock cannot show it is no limit.
        self.started.checked_add(self.limits().hard_time(Resource::TotalTime)?)
    }

    /// What is left of the time of the work, and of all that it runs inside.
    pub(crate) fn remaining_time(&self) -> Option<Duration> {
        let deadline = self.chain().filter_map(Self::deadline).min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// How long a call to an external system may take here, the time left not yet considered.
    pub(crate) fn external_timeout(&self) -> Option<Duration> {
        self.chain().filter_map(|meter| meter.limits().hard_time(Resource::ExternalTimeout)).min()
    }

    /// Ends the work because nothing came for so long.
    #[cfg(feature = "http")]
    pub(crate) fn was_idle(&self, waited: Duration) -> Cut {
        self.reached(Resource::BodyIdle, nanos(waited))
    }

    /// Ends the work because its time is up.
    pub(crate) fn time_is_up(&self) -> Cut {
        self.reached(Resource::TotalTime, nanos(self.started.elapsed()))
    }

    /// Ends the work at a hard limit that a timer has reached, if only just.
    fn reached(&self, resource: Resource, observed: u64) -> Cut {
        let limit = self.limits().hard(resource);
        self.cross_hard(resource, observed, limit, Suspect::Nobody);
        Cut::new(self.violation(resource, Severity::Hard, observed, limit, Suspect::Nobody))
    }

    /// The crossing of a hard limit that ends the work.
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.cut.get()
    }

    /// Notes that the work is being ended from outside, in the middle of whatever it does.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    /// Whether this work, or one that it runs inside, is being ended from outside.
    #[cfg(feature = "sqlx")]
    pub(crate) fn is_abandoned(&self) -> bool {
        self.chain().any(|meter| meter.abandoned.load(Relaxed))
    }

    /// Whether something was refused, so that an answer made without it is not to be used.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    /// Counts one execution of a statement, which is about to be sent, here and in all that this work
    /// runs inside; or nowhere, if a hard limit of any of them forbids it.
    pub(crate) fn take_statement(&self, key: Key, text: &str) -> Result<(), Cut> {
        let give_back = |meter: &Self| meter.give_back_statement(key);
        self.take_in_all(|meter| meter.take_statement_here(key, text), give_back)?;
        self.chain().for_each(|meter| meter.count_statement(key, text));
        Ok(())
    }

    fn take_statement_here(&self, key: Key, text: &str) -> Result<(), Cut> {
        self.take_here(Resource::Queries, Suspect::TopStatement)?;
        let most = self.limits().hard(Resource::RepeatedQueries);
        if self.limits_repetitions() && self.statements.take(key, text, most).is_none() {
            self.give_back(Resource::Queries);
            return Err(self.refuse(Resource::RepeatedQueries, Suspect::Statement(key)));
        }
        Ok(())
    }

    fn give_back_statement(&self, key: Key) {
        self.give_back(Resource::Queries);
        if self.limits_repetitions() {
            self.statements.give_back(key);
        }
    }

    /// What is left to do for a statement once all accounts have taken it.
    fn count_statement(&self, key: Key, text: &str) {
        let repeated = if self.limits_repetitions() {
            self.statements.find(key).map_or(0, Entry::count)
        } else {
            self.statements.count(key, text)
        };
        self.check_taken(Resource::Queries, Suspect::TopStatement);
        self.raise(Resource::RepeatedQueries, repeated, Suspect::Statement(key));
    }

    /// Whether repetitions are counted before a statement is sent, since one may be too many.
    fn limits_repetitions(&self) -> bool {
        self.limits().hard_limits(Resource::RepeatedQueries)
    }

    /// Counts one more of a resource here and in all that this work runs inside; or nowhere, if a hard
    /// limit of any of them forbids it. Soft limits are yet to be checked.
    pub(crate) fn take(&self, resource: Resource, suspect: Suspect) -> Result<(), Cut> {
        let give_back = |meter: &Self| meter.give_back(resource);
        self.take_in_all(|meter| meter.take_here(resource, suspect), give_back)
    }

    /// Checks the soft limit on what was taken.
    pub(crate) fn check_taken(&self, resource: Resource, suspect: Suspect) {
        self.check(resource, self.used(resource), suspect);
    }

    fn take_in_all(
        &self,
        take: impl Fn(&Self) -> Result<(), Cut>,
        give_back: impl Fn(&Self),
    ) -> Result<(), Cut> {
        for (taken, meter) in self.chain().enumerate() {
            if let Err(cut) = take(meter) {
                self.chain().take(taken).for_each(give_back);
                return Err(cut);
            }
        }
        Ok(())
    }

    /// Asking and counting is one step: threads that ask for the last one at once do not all get it.
    fn take_here(&self, resource: Resource, suspect: Suspect) -> Result<(), Cut> {
        let hard = self.limits().hard(resource);
        let one_more = |used: u64| (used < hard).then(|| used.saturating_add(1));
        let used = &self.used[resource.index()];
        if self.cut().is_none() && used.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
            return Ok(());
        }
        Err(self.refuse(resource, suspect))
    }

    fn give_back(&self, resource: Resource) {
        self.used[resource.index()].fetch_sub(1, Relaxed);
    }

    /// Refuses what is one too many, or comes after something that was.
    #[cold]
    fn refuse(&self, resource: Resource, suspect: Suspect) -> Cut {
        self.refused.store(true, Relaxed);
        if self.cut().is_none() {
            let limit = self.limits().hard(resource);
            self.cross_hard(resource, limit.saturating_add(1), limit, suspect);
        }
        self.cut().expect("a hard limit that was crossed cuts").clone()
    }

    /// Counts one command that got its connection now, and times it until its end.
    #[cfg(feature = "mongodb")]
    pub(crate) fn count_command(&self, now: Instant) {
        self.commands.began(self.started, now);
        self.add(Resource::Queries, 1, Suspect::TopStatement);
    }

    #[cfg(feature = "mongodb")]
    pub(crate) fn end_command(&self, since: Instant, now: Instant) {
        self.commands.ended(self.started, since);
        self.add_statement_time(None, now.saturating_duration_since(since));
        let time = nanos(now.saturating_duration_since(since));
        self.raise(Resource::SlowQuery, time, Suspect::Nobody);
    }

    /// Tells which command it is that was counted.
    #[cfg(feature = "mongodb")]
    pub(crate) fn count_command_text(&self, key: Key, text: &str) {
        let repeated = self.statements.count(key, text);
        self.raise(Resource::RepeatedQueries, repeated, Suspect::Statement(key));
    }

    /// Compares a statement that sqlx says it has executed with what was counted.
    #[cfg(feature = "witness")]
    pub(crate) fn witness_statement(&self, key: Key, text: &str, by_driver: bool) {
        if self.statements.witness(key, text, by_driver) {
            self.unmetered.fetch_add(1, Relaxed);
        }
    }

    /// Counts one call to an external system, which was taken.
    pub(crate) fn count_external(&self, key: Key, name: &str) {
        self.externals.count(key, name);
        self.check_taken(Resource::ExternalCalls, Suspect::External(key));
    }

    /// Charges the wait for one statement, of which this is a part, or all.
    pub(crate) fn add_statement_time(&self, key: Option<Key>, time: Duration) {
        if let Some(key) = key {
            self.statements.add_time(key, nanos(time));
        }
        let suspect = key.map_or(Suspect::Nobody, Suspect::Statement);
        self.add(Resource::QueryTime, nanos(time), suspect);
        if key.is_some() {
            self.raise(Resource::SlowQuery, nanos(time), suspect);
        }
    }

    pub(crate) fn add_external_time(&self, key: Key, time: Duration) {
        self.externals.add_time(key, nanos(time));
        self.add(Resource::ExternalTime, nanos(time), Suspect::External(key));
    }

    /// Charges what was allocated and freed over a stretch.
    pub(crate) fn add_memory(&self, delta: Delta) {
        let before = self.live.load(Relaxed);
        let peak = before.saturating_add(delta.peak);
        if delta.net != 0 {
            // Not a plain addition: live bytes stop at zero.
            let add = |live: u64| Some(live.saturating_add_signed(delta.net));
            let _ = self.live.fetch_update(Relaxed, Relaxed, add);
        }
        if delta.allocated > 0 {
            self.add(Resource::Allocated, delta.allocated, Suspect::Nobody);
            self.raise(Resource::Memory, peak, Suspect::Nobody);
        }
    }

    /// Lets go of memory that others will free: a piece of the body that the server has now.
    ///
    /// Bytes that this work never allocated (static ones, another cache's) are let go of as well, so
    /// what is live is a lower bound then; without this, each download would seem to hold its whole body.
    #[cfg(feature = "http")]
    pub(crate) fn hand_over(&self, bytes: u64) {
        let less = |live: u64| Some(live.saturating_sub(bytes));
        let _ = self.live.fetch_update(Relaxed, Relaxed, less);
    }

    pub(crate) fn add_poll(&self, time: Duration) {
        self.busy.fetch_add(nanos(time), Relaxed);
        self.raise(Resource::PollTime, nanos(time), Suspect::Nobody);
    }

    /// Adds to what was used of a resource.
    pub(crate) fn add(&self, resource: Resource, n: u64, suspect: Suspect) {
        let before = self.used[resource.index()].fetch_add(n, Relaxed);
        self.check(resource, before.saturating_add(n), suspect);
    }

    /// Notes a value of a resource of which the highest counts.
    pub(crate) fn raise(&self, resource: Resource, value: u64, suspect: Suspect) {
        self.used[resource.index()].fetch_max(value, Relaxed);
        self.check(resource, value, suspect);
    }

    fn check(&self, resource: Resource, observed: u64, suspect: Suspect) {
        let limits = self.limits();
        if observed > limits.soft(resource) || observed > limits.hard(resource) {
            self.cross(resource, observed, suspect);
        }
    }

    /// Reports the crossing of the limits that this is more than.
    #[cold]
    fn cross(&self, resource: Resource, observed: u64, suspect: Suspect) {
        let limits = self.limits();
        match limits.hard(resource) {
            hard if observed > hard => self.cross_hard(resource, observed, hard, suspect),
            _ => {
                self.cross_once(resource, Severity::Soft, observed, limits.soft(resource), suspect)
            }
        }
    }

    /// Reports that a hard limit was reached, which cuts the work.
    #[cold]
    pub(crate) fn cross_hard(
        &self,
        resource: Resource,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) {
        self.cross_once(resource, Severity::Hard, observed, limit, suspect);
    }

    fn cross_once(
        &self,
        resource: Resource,
        severity: Severity,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) {
        // A call that takes too long is cut by itself; the work goes on.
        if severity == Severity::Hard
            && resource != Resource::ExternalTimeout
            && self.cut().is_none()
        {
            // Before all else: whoever finds this crossing known goes by the cut. Another thread may
            // have been first.
            let violation = self.violation(resource, severity, observed, limit, suspect);
            drop(self.cut.set(Cut::new(violation)));
        }
        let soft = 1 << resource.index();
        let hard = soft << Resource::COUNT;
        // A hard crossing says all that the soft one would.
        let (news, known) = match severity {
            Severity::Soft => (soft, soft | hard),
            Severity::Hard => (soft | hard, hard),
        };
        if self.crossed.fetch_or(news, Relaxed) & known != 0 {
            return;
        }
        let violation = self.violation(resource, severity, observed, limit, suspect);
        report::violation(self, &violation);
    }

    pub(crate) fn violation(
        &self,
        resource: Resource,
        severity: Severity,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) -> Violation {
        let statement = |entry: &Entry| Cause::Statement {
            text: entry.text().to_owned(),
            executions: entry.count(),
            time: Duration::from_nanos(entry.nanos()),
        };
        let cause = match suspect {
            Suspect::Nobody => None,
            Suspect::Statement(key) => self.statements.find(key).map(statement),
            Suspect::TopStatement => self.statements.most().map(statement),
            Suspect::External(key) => self.externals.find(key).map(|entry| Cause::External {
                name: entry.text().to_owned(),
                calls: entry.count(),
                time: Duration::from_nanos(entry.nanos()),
            }),
        };
        Violation {
            resource,
            severity,
            limit: resource.amount(limit),
            observed: resource.amount(observed),
            work: self.name.to_string(),
            place: Span::current().metadata().map(|span| span.name().to_owned()),
            cause,
        }
    }

    /// The headers of a response are there, with which limits on the wall time can end.
    #[cfg(feature = "http")]
    pub(crate) fn headers_are_there(&self) {
        if self.limits().end_at_headers {
            self.check_wall_time();
        }
    }

    fn check_wall_time(&self) {
        if !self.timeless.swap(true, Relaxed) {
            let total = nanos(self.started.elapsed());
            self.check(Resource::TotalTime, total, Suspect::Nobody);
            self.check(Resource::SlowRequest, total, Suspect::Nobody);
        }
    }

    /// The checks that can only be made at the end.
    pub(crate) fn close(&self) {
        self.check_wall_time();
        self.check(Resource::Retained, self.live.load(Relaxed), Suspect::Nobody);
        report::unmeasured::check(self.limits());
    }

    /// How many limits were crossed.
    pub(crate) fn violations(&self) -> u32 {
        // A hard crossing sets both bits, a soft one the lower.
        let soft = (1 << Resource::COUNT) - 1;
        (self.crossed.load(Relaxed) & soft).count_ones()
    }

    /// How long what is under way has taken by now.
    #[cfg(feature = "mongodb")]
    fn in_flight(&self) -> Duration {
        self.commands.time(self.started)
    }

    #[cfg(not(feature = "mongodb"))]
    fn in_flight(&self) -> Duration {
        Duration::ZERO
    }

    fn used(&self, resource: Resource) -> u64 {
        self.used[resource.index()].load(Relaxed)
    }

    /// What has been used, with this much memory not charged yet.
    pub(crate) fn usage(&self, pending: Delta) -> Usage {
        let count = |resource| self.used(resource);
        let time = |resource| Duration::from_nanos(self.used(resource));
        let polls_are_timed = self.limits().names(Resource::PollTime);
        let live = self.live.load(Relaxed);
        let peak = live.saturating_add(pending.peak).max(count(Resource::Memory));
        let measured = |bytes| memory::is_measured().then_some(bytes);
        Usage {
            queries: count(Resource::Queries),
            repeated_queries: count(Resource::RepeatedQueries),
            rows: count(Resource::Rows),
            transactions: count(Resource::Transactions),
            query_time: time(Resource::QueryTime).saturating_add(self.in_flight()),
            slow_query: time(Resource::SlowQuery),
            connection_wait: time(Resource::ConnectionWait),
            unmetered: self.unmetered.load(Relaxed),
            memory: measured(peak),
            allocated: measured(count(Resource::Allocated).saturating_add(pending.allocated)),
            retained: measured(live.saturating_add_signed(pending.net)),
            external_calls: count(Resource::ExternalCalls),
            external_time: time(Resource::ExternalTime),
            total_time: self.started.elapsed(),
            queue_time: self.queue_time.get().copied(),
            poll_time: polls_are_timed.then(|| time(Resource::PollTime)),
            busy_time: polls_are_timed.then(|| Duration::from_nanos(self.busy.load(Relaxed))),
            response_bytes: count(Resource::ResponseBytes),
        }
    }
}
