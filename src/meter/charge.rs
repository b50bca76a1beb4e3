//! What is charged to a unit of work, and what is refused to it.

#[cfg(feature = "redis")]
mod cache;

#[cfg(feature = "mongodb")]
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[cfg(feature = "mongodb")]
use super::Link;
#[cfg(feature = "mongodb")]
use super::in_flight::{Command, InFlight};
#[cfg(feature = "mongodb")]
use super::recording::Kind;
#[cfg(feature = "witness")]
use super::table::By;
use super::table::Key;
use super::{Meter, Suspect};
use crate::error::Cut;
use crate::memory::Delta;
use crate::resource::Resource;
#[cfg(feature = "mongodb")]
use crate::time::Instant;
use crate::time::nanos;

impl Meter {
    /// Counts one execution of a statement that is about to be sent, in this account and all outer
    /// ones; or in none of them, if it would cross a hard limit of any.
    pub(crate) fn take_statement(&self, key: Key, text: &str) -> Result<(), Cut> {
        if self.is_outermost() {
            self.take_statement_here(key, text)?;
        } else {
            let give_back = |meter: &Self| meter.give_back_statement(key, text);
            self.take_in_all(|meter| meter.take_statement_here(key, text), give_back)?;
        }
        self.each(|meter| meter.count_statement(key, text));
        Ok(())
    }

    fn take_statement_here(&self, key: Key, text: &str) -> Result<(), Cut> {
        self.take_here(Resource::Queries, Suspect::TopStatement)?;
        let most = self.limits().on_repetitions(key).hard;
        if self.limits_repetitions() && self.statements.take(key, text, most).is_none() {
            self.give_back(Resource::Queries);
            return Err(self.refuse(Resource::RepeatedQueries, Suspect::Statement(key)));
        }
        if self.limits_writes() && self.statements.writes(key, text) {
            let taken = self.take_here(Resource::Writes, Suspect::Statement(key));
            return taken.inspect_err(|_| self.give_back_count(key));
        }
        Ok(())
    }

    fn give_back_statement(&self, key: Key, text: &str) {
        self.give_back_count(key);
        if self.limits_writes() && self.statements.writes(key, text) {
            self.give_back(Resource::Writes);
        }
    }

    fn give_back_count(&self, key: Key) {
        self.give_back(Resource::Queries);
        if self.limits_repetitions() {
            self.statements.give_back(key);
        }
    }

    /// The rest of the counting of a statement, once no account has refused it.
    fn count_statement(&self, key: Key, text: &str) {
        let repeated = if self.limits_repetitions() {
            self.statements.repeated(key)
        } else {
            self.statements.count(key, text)
        };
        self.check_taken(Resource::Queries, Suspect::TopStatement);
        self.raise(Resource::RepeatedQueries, repeated, Suspect::Statement(key));
        if self.statements.writes(key, text) {
            match self.limits_writes() {
                true => self.check_taken(Resource::Writes, Suspect::Statement(key)),
                false => self.add(Resource::Writes, 1, Suspect::Statement(key)),
            }
        }
    }

    /// Whether statements that write are counted before they are sent, since one may be too many.
    fn limits_writes(&self) -> bool {
        self.limits().hard_limits(Resource::Writes)
    }

    /// Whether repetitions are counted before a statement is sent, since one may be too many.
    fn limits_repetitions(&self) -> bool {
        self.limits().hard_limits_repetitions()
    }

    /// Counts one more of a resource, in this account and all outer ones; or in none of them, if
    /// that would cross a hard limit of any. The caller checks soft limits afterwards.
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
        for (taken, meter) in self.places().enumerate() {
            if let Some(meter) = meter
                && let Err(cut) = take(&meter)
            {
                self.places().take(taken).flatten().for_each(|meter| give_back(&meter));
                return Err(cut);
            }
        }
        Ok(())
    }

    /// Checks and counts in one atomic step, so that of several threads only one gets the last.
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

    /// Refuses an operation that is one too many, or that comes after one that was.
    #[cold]
    fn refuse(&self, resource: Resource, suspect: Suspect) -> Cut {
        self.refused.store(true, Relaxed);
        self.count_refusal();
        if self.cut().is_none() {
            let limit = self.bounds(resource, suspect).hard;
            self.cross_hard(resource, limit.saturating_add(1), limit, suspect);
        }
        self.cut().expect("a hard limit that was crossed cuts").clone()
    }

    /// Counts a refusal for [`is_refused_often`](Self::is_refused_often).
    pub(crate) fn count_refusal(&self) {
        self.rare().refusals.fetch_add(1, Relaxed);
    }

    /// Refuses the result of a statement that was executed, if a hard limit has been crossed.
    #[cfg(feature = "sqlx")]
    pub(crate) fn refuse_answer(&self) -> Option<Cut> {
        let cut = self.cut()?;
        self.refused.store(true, Relaxed);
        Some(cut.clone())
    }

    /// Counts one command, which got its connection now, in this account and all outer ones. Its
    /// time runs until it ends.
    #[cfg(feature = "mongodb")]
    pub(crate) fn begin_command(&self, id: u64, is_carried: impl Fn(&Self) -> bool) {
        self.settle();
        let since = Instant::now();
        // A command that a carried child began is not dropped with the works that it is charged to.
        let is_carried =
            |meter: &Option<Link<'_>>| meter.as_ref().is_some_and(|meter| is_carried(meter));
        let held_by = self.places().take_while(|meter| !is_carried(meter)).count();
        let recorded = self.record(Kind::Shape, None);
        let mut own = Some(Command { id, since, key: None, held_by, recorded });
        for (depth, meter) in self.places().enumerate() {
            let Some(meter) = meter else { continue };
            let commands = meter.expect_commands();
            commands.began(meter.started, since, depth < held_by, own.take());
            meter.add(Resource::Queries, 1, Suspect::TopStatement);
        }
    }

    /// Sets the kind of a command that was begun.
    #[cfg(feature = "mongodb")]
    pub(crate) fn name_command(&self, id: u64, key: Key, text: &str) {
        if let Some(commands) = self.commands() {
            commands.name(id, key, text);
        }
        for meter in self.chain() {
            let repeated = meter.statements.count(key, text);
            meter.raise(Resource::RepeatedQueries, repeated, Suspect::Statement(key));
            if meter.statements.writes(key, text) {
                meter.add(Resource::Writes, 1, Suspect::Statement(key));
            }
        }
    }

    /// Charges the documents that a command has brought.
    #[cfg(feature = "mongodb")]
    pub(crate) fn add_documents(&self, id: u64, documents: u64) {
        if let Some(commands) = self.commands() {
            commands.add_rows(id, documents);
        }
        for meter in self.chain() {
            meter.add(Resource::Rows, documents, Suspect::TopStatement);
        }
    }

    /// Charges a command whose end was told.
    #[cfg(feature = "mongodb")]
    pub(crate) fn end_command(&self, id: u64) {
        let Some(commands) = self.commands() else { return };
        let ended = commands.take(id, |command| self.charge_command(commands, command));
        ended.into_iter().for_each(|(command, time)| self.conclude_command(&command, time));
    }

    /// Charges the commands whose end has not been told yet.
    #[cfg(feature = "mongodb")]
    pub(crate) fn settle_commands(&self) {
        let Some(commands) = self.commands() else { return };
        let next = || commands.take_any(|command| self.charge_command(commands, command));
        iter::from_fn(next).for_each(|(command, time)| self.conclude_command(&command, time));
        // What runs in other tasks may go on; its time up to here counts as well.
        let so_far = self.used(Resource::QueryTime).saturating_add(nanos(self.in_flight()));
        self.check(Resource::QueryTime, so_far, Suspect::Nobody);
        // A command that is ending concurrently may be charged but not yet checked.
        self.check_taken(Resource::SlowQuery, Suspect::Nobody);
    }

    /// Charges the time of a command, and returns it. The caller checks limits afterwards.
    #[cfg(feature = "mongodb")]
    fn charge_command(&self, commands: &InFlight, command: &Command) -> Duration {
        let time = commands.waited(self.started, command.since);
        for meter in self.chain() {
            if let Some(commands) = meter.commands() {
                commands.ended(meter.started, command.since);
            }
            if let Some(key) = command.key {
                meter.statements.add_time(key, nanos(time));
            }
            meter.used[Resource::QueryTime.index()].fetch_add(nanos(time), Relaxed);
            meter.used[Resource::SlowQuery.index()].fetch_max(nanos(time), Relaxed);
        }
        time
    }

    /// Checks the limits on the time of a command that was charged, then releases the command.
    #[cfg(feature = "mongodb")]
    fn conclude_command(&self, command: &Command, time: Duration) {
        command.recorded.add_time(time);
        let suspect = command.key.map_or(Suspect::Nobody, Suspect::Statement);
        for meter in self.chain() {
            meter.check_taken(Resource::QueryTime, suspect);
            meter.check(Resource::SlowQuery, nanos(time), suspect);
        }
        for meter in self.places().take(command.held_by).flatten() {
            meter.commands().into_iter().for_each(InFlight::release);
        }
    }

    /// Compares a statement that an event of sqlx reports with what was counted.
    #[cfg(feature = "witness")]
    pub(crate) fn witness_statement(&self, key: Key, text: &str, by: By) -> bool {
        let is_unmetered = self.statements.witness(key, text, by);
        if is_unmetered {
            self.rare().unmetered.fetch_add(1, Relaxed);
        }
        is_unmetered
    }

    /// Whether this statement was counted here more often than a witness has reported it.
    #[cfg(feature = "witness")]
    pub(crate) fn has_unseen(&self, key: Key) -> bool {
        self.statements.has_unseen(key)
    }

    /// Counts one call to an external system that was not refused.
    pub(crate) fn count_external(&self, key: Key, name: &str) {
        self.rare().externals.count(key, name);
        self.check_taken(Resource::ExternalCalls, Suspect::External(key));
    }

    /// Charges the wait for one statement, or a part of it.
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
        self.rare().externals.add_time(key, nanos(time));
        let suspect = Suspect::External(key);
        self.add(Resource::ExternalTime, nanos(time), suspect);
        let limit = self.limits().external_timeout(key);
        if nanos(time) > limit {
            self.cross_hard(Resource::ExternalTimeout, nanos(time), limit, suspect);
        } else if nanos(time) > self.limits().soft(Resource::ExternalTimeout) {
            self.cross_soft(Resource::ExternalTimeout, nanos(time), suspect);
        }
    }

    /// Charges what was allocated and freed during a poll.
    pub(crate) fn add_memory(&self, delta: Delta) {
        // Not a plain addition: live bytes stop at zero.
        let before = self.change(&self.live, |live| live.saturating_add_signed(delta.net));
        if delta.net.is_negative() {
            let of_others = delta.net.unsigned_abs().saturating_sub(before);
            if of_others > 0 {
                self.freed_of_others.fetch_add(of_others, Relaxed);
            }
        }
        if delta.allocated > 0 {
            if delta.allocated > self.largest_poll.load(Relaxed) {
                self.largest_poll.store(delta.allocated, Relaxed);
            }
            let peak = before.saturating_add(delta.peak);
            let add = |total: u64| total.saturating_add(delta.allocated);
            let total = add(self.change(&self.used[Resource::Allocated.index()], add));
            self.check(Resource::Allocated, total, Suspect::Memory(total));
            #[cfg(feature = "testing")]
            if peak > self.used(Resource::Memory) {
                self.record_peak();
            }
            self.raise(Resource::Memory, peak, Suspect::Memory(total));
        }
    }

    /// No longer counts bytes as live that others will free: those of a frame that was handed to
    /// the server.
    ///
    /// Bytes that this work did not allocate (static ones, or those of a cache) are subtracted as
    /// well, so the live bytes are a lower bound then. Without this, each download would seem to
    /// hold its whole body.
    #[cfg(feature = "http")]
    pub(crate) fn hand_over(&self, bytes: u64) {
        if self.live.load(Relaxed) > 0 {
            self.change(&self.live, |live| live.saturating_sub(bytes));
        }
    }

    pub(crate) fn add_poll(&self, time: Duration) {
        self.busy.fetch_add(nanos(time), Relaxed);
        self.raise(Resource::PollTime, nanos(time), Suspect::OwnCode);
    }

    /// Adds to the usage of a resource that only the task which runs the work charges.
    #[cfg(feature = "http")]
    pub(crate) fn add_own(&self, resource: Resource, n: u64) {
        let before = self.change(&self.used[resource.index()], |used| used.saturating_add(n));
        self.check(resource, before.saturating_add(n), Suspect::Nobody);
    }

    /// Changes a number that only the task which runs the work changes. Returns the number before.
    ///
    /// As long as no other task has a handle of the account, one thread at a time changes it, and
    /// load and store do. A handle is only given to another task while the work runs, so never
    /// between the two.
    #[inline]
    fn change(&self, number: &AtomicU64, change: impl Fn(u64) -> u64) -> u64 {
        #[inline(never)]
        fn exchange(number: &AtomicU64, change: impl Fn(u64) -> u64) -> u64 {
            let changed = |value| Some(change(value));
            number.fetch_update(Relaxed, Relaxed, changed).unwrap_or_else(|value| value)
        }

        if self.is_shared() {
            return exchange(number, change);
        }
        let before = number.load(Relaxed);
        number.store(change(before), Relaxed);
        before
    }

    /// Adds to the usage of a resource.
    pub(crate) fn add(&self, resource: Resource, n: u64, suspect: Suspect) {
        let before = self.used[resource.index()].fetch_add(n, Relaxed);
        self.check(resource, before.saturating_add(n), suspect);
    }

    /// Raises the usage of a resource whose usage is the highest value.
    pub(crate) fn raise(&self, resource: Resource, value: u64, suspect: Suspect) {
        let highest = &self.used[resource.index()];
        // Mostly it is not the highest, and a load is cheaper.
        if value > highest.load(Relaxed) {
            highest.fetch_max(value, Relaxed);
        }
        self.check(resource, value, suspect);
    }
}
