//! What one unit of work has used, and the first crossing of each of its limits.

mod causes;
mod chain;
mod charge;
mod checkpoint;
mod crossing;
mod flags;
#[cfg(feature = "mongodb")]
mod in_flight;
pub(crate) mod observed;
#[cfg(feature = "http")]
mod outlived;
#[cfg(feature = "witness")]
pub(crate) mod own_span;
#[cfg(feature = "diesel")]
mod pending;
pub(crate) mod pools;
mod rare;
pub(crate) mod recording;
mod spare;
pub(crate) mod table;
mod waiter;
pub(crate) mod waits;

use std::borrow::Cow;
use std::mem::{self, ManuallyDrop};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tracing::Span;

use crate::attributes::Attributes;
use crate::budget::{Budget, Limits, NONE};
use crate::error::Cut;
use crate::memory::{self, Delta};
use crate::report::elsewhere::Strangers;
use crate::report::{self, Name, Reporter};
use crate::resource::Resource;
use crate::time::{Instant, nanos};
use crate::usage::Usage;
use crate::violation::Severity;
#[cfg(feature = "http")]
pub(crate) use causes::InFlightSince;
use chain::Ancestors;
pub(crate) use chain::Link;
use flags::Flags;
#[cfg(feature = "mongodb")]
use in_flight::InFlight;
#[cfg(feature = "http")]
pub(crate) use outlived::EndsWithWork;
use rare::Rare;
use table::{Key, Table};
use waits::OtherWaits;

/// The account of one unit of work.
///
/// Shared by the threads on which the work runs; nothing is published through the numbers, so all
/// of them are `Relaxed`.
#[derive(Debug)]
pub(crate) struct Meter {
    // The fields that a poll or a statement needs come first, side by side: after a wait they are
    // not in the cache.
    /// Checked on each poll.
    flags: Flags,
    budget: Budget,
    /// The works that this one runs inside, once that is determined and if there are any.
    ancestors: OnceLock<Ancestors>,
    statements: Table,
    used: [AtomicU64; Resource::COUNT],
    /// Bytes allocated and not freed yet. `Memory` in `used` is their peak.
    live: AtomicU64,
    /// Bytes freed beyond those that were live: other work had allocated them.
    freed_of_others: AtomicU64,
    /// The most that was allocated in one poll.
    largest_poll: AtomicU64,
    busy: AtomicU64,
    /// One bit for each resource and severity: set once that crossing has been reported.
    crossed: AtomicU64,
    started: Instant,
    /// How many nanoseconds the work was queued before it was started, or `UNKNOWN`.
    queue_time: AtomicU64,
    name: Name,
    strangers: Strangers,
    reporter: Option<Arc<dyn Reporter>>,
    /// The span that was current at the start, for events that are emitted while no span is.
    span: Span,
    other_waits: OtherWaits,
    rare: OnceLock<Box<Rare>>,
    refused: AtomicBool,
    abandoned: AtomicBool,
    /// The limits on the wall time have been checked for the last time.
    timeless: AtomicBool,
    #[cfg(feature = "testing")]
    recording: Option<Arc<recording::Recording>>,
}

/// A time that is not known.
const UNKNOWN: u64 = u64::MAX;

/// What distinguishes a unit of work from others of its name, and which work created it.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    pub(crate) attributes: Attributes,
    /// The unit of work in which it was made.
    pub(crate) begun_by: Option<Name>,
}

impl Origin {
    /// That of work without attributes which no other work created.
    const UNKNOWN: &'static Self = &Self { attributes: Attributes::new(), begun_by: None };

    /// That of work which is created inside `outer`, or inside none.
    pub(crate) fn inside(outer: Option<&Meter>) -> Self {
        let begun_by = outer.map(|meter| meter.name.clone());
        Self { attributes: Attributes::new(), begun_by }
    }

    fn tells_something(&self) -> bool {
        self.begun_by.is_some() || !self.attributes.is_empty()
    }
}

/// The cause to report if a charge crosses a limit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Suspect {
    Nobody,
    Statement(Key),
    /// The statement that was executed most often, if that is known.
    TopStatement,
    External(Key),
    /// A kind of command to a cache.
    #[cfg(feature = "redis")]
    Cache(Key),
    /// The kind that was sent most often, if that is known.
    #[cfg(feature = "redis")]
    TopCacheCall,
    /// Whatever has taken most of the time.
    Time,
    /// Whatever has allocated most, of so many bytes in all.
    Memory(u64),
    /// The pool whose connections were waited for.
    #[cfg_attr(
        not(any(feature = "mongodb", feature = "sqlx")),
        expect(dead_code, reason = "there are no pools")
    )]
    Connection,
    /// What a body waits for.
    #[cfg(feature = "http")]
    Idling(Option<InFlightSince>),
    /// Code of the work itself.
    OwnCode,
}

impl Meter {
    pub(crate) fn new(name: Name, budget: Budget, reporter: Option<Arc<dyn Reporter>>) -> Self {
        let flags = Flags::new(budget.limits().names(Resource::PollTime));
        Self {
            budget,
            name,
            strangers: Strangers::now(),
            reporter,
            span: recording::current_span(),
            started: Instant::now(),
            flags,
            ancestors: OnceLock::new(),
            used: [const { AtomicU64::new(0) }; Resource::COUNT],
            live: AtomicU64::new(0),
            freed_of_others: AtomicU64::new(0),
            largest_poll: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            queue_time: AtomicU64::new(UNKNOWN),
            statements: Table::default(),
            crossed: AtomicU64::new(0),
            other_waits: OtherWaits::default(),
            rare: OnceLock::new(),
            refused: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            timeless: AtomicBool::new(false),
            #[cfg(feature = "testing")]
            recording: None,
        }
    }

    /// The size of an account with its reference counts, without the fields that only `testing`
    /// has.
    #[cfg(test)]
    pub(crate) const BYTES: usize = size_of::<Self>() + 2 * size_of::<usize>()
        - if cfg!(feature = "testing") { 2 * size_of::<usize>() } else { 0 };

    /// Opens an account for work that begins now. Reuses that of finished work, if this thread kept
    /// one.
    #[inline]
    pub(crate) fn open(
        name: Name,
        budget: Cow<'_, Budget>,
        reporter: Option<Arc<dyn Reporter>>,
    ) -> Arc<Self> {
        if let Some(mut account) = spare::take()
            && let Some(this) = Arc::get_mut(&mut account)
        {
            this.begin(name, budget, reporter);
            return account;
        }
        // The account is not charged to the work that is running while it is allocated.
        memory::aside(|| Arc::new(Self::new(name, budget.into_owned(), reporter)))
    }

    /// Initialises a [cleared](Self::clear) account for work that begins now.
    ///
    /// Both functions name every field, so that the compiler reports one that is forgotten: nothing
    /// of one unit of work may be visible in another.
    #[inline]
    fn begin(&mut self, name: Name, budget: Cow<'_, Budget>, reporter: Option<Arc<dyn Reporter>>) {
        let Self {
            flags,
            budget: this_budget,
            used,
            live,
            freed_of_others,
            busy,
            largest_poll,
            crossed,
            started,
            queue_time,
            name: this_name,
            strangers,
            reporter: this_reporter,
            span,
            other_waits,
            refused,
            abandoned,
            timeless,
            // Empty since they were cleared.
            rare: _,
            ancestors: _,
            statements: _,
            #[cfg(feature = "testing")]
                recording: _,
        } = self;
        *flags = Flags::new(budget.limits().names(Resource::PollTime));
        // Mostly the budget is the same one; a clone would contend for its reference count with
        // other threads.
        if !this_budget.is_same(&budget) {
            *this_budget = budget.into_owned();
        }
        fill(this_name, name);
        fill(this_reporter, reporter);
        *used = [const { AtomicU64::new(0) }; Resource::COUNT];
        *live.get_mut() = 0;
        *freed_of_others.get_mut() = 0;
        *busy.get_mut() = 0;
        *largest_poll.get_mut() = 0;
        *crossed.get_mut() = 0;
        *queue_time.get_mut() = UNKNOWN;
        *other_waits = OtherWaits::default();
        *refused.get_mut() = false;
        *abandoned.get_mut() = false;
        *timeless.get_mut() = false;
        *strangers = Strangers::now();
        fill(span, recording::current_span());
        *started = Instant::now();
    }

    /// Gives the account back, once its work is finished and reported.
    #[inline]
    pub(crate) fn recycle(mut self: Arc<Self>) {
        // Any other handle may charge or read it at any time, so it must not be reused then.
        match Arc::get_mut(&mut self) {
            Some(this) => {
                this.clear();
                spare::keep(self);
            }
            None => self.leave_to_others(),
        }
    }

    #[cold]
    fn leave_to_others(self: Arc<Self>) {
        // Only taken out without charge: its reporter was allocated by the user, and is freed at
        // the user's charge.
        drop(memory::aside(|| Arc::into_inner(self)));
    }

    /// Drops everything that differs between works. Allocations of this crate are freed at nobody's
    /// charge, as they were allocated; those of the user are charged.
    #[inline]
    fn clear(&mut self) {
        let Self {
            budget,
            ancestors,
            statements,
            name,
            reporter,
            span,
            rare,
            #[cfg(feature = "testing")]
            recording,
            // Numbers, which `begin` sets.
            flags: _,
            used: _,
            live: _,
            freed_of_others: _,
            busy: _,
            largest_poll: _,
            crossed: _,
            started: _,
            queue_time: _,
            strangers: _,
            other_waits: _,
            refused: _,
            abandoned: _,
            timeless: _,
        } = self;
        if let Some(rare) = rare.take() {
            drop(memory::aside(|| rare.into_foreign_parts()));
        }
        if let Some(ancestors) = ancestors.take() {
            memory::aside(|| drop(ancestors));
        }
        statements.clear();
        *name = Name::NONE;
        *reporter = None;
        if !span.is_none() {
            *span = Span::none();
        }
        // A shared budget is likely to be that of the next work as well.
        if !budget.is_shared() {
            *budget = Budget::new();
        }
        #[cfg(feature = "testing")]
        {
            *recording = None;
        }
        #[cfg(debug_assertions)]
        self.poison();
    }

    /// Overwrites all numbers with implausible ones, so that any test notices one that `begin` does
    /// not set.
    #[cfg(debug_assertions)]
    fn poison(&mut self) {
        const POISON: u64 = 0xDEAD_DEAD_DEAD_DEAD;
        self.flags.set(u64::MAX);
        self.used = [const { AtomicU64::new(POISON) }; Resource::COUNT];
        for number in [
            &mut self.live,
            &mut self.freed_of_others,
            &mut self.busy,
            &mut self.largest_poll,
            &mut self.crossed,
            &mut self.queue_time,
        ] {
            *number.get_mut() = POISON;
        }
        for fact in [&mut self.refused, &mut self.abandoned, &mut self.timeless] {
            *fact.get_mut() = true;
        }
        self.name = "an account that is over".into();
        self.other_waits = OtherWaits::poisoned(POISON);
        self.started = self.started.checked_sub(Duration::from_secs(3_600)).unwrap_or(self.started);
    }

    /// Sets the origin. Must come before anything else that is kept in `rare`.
    pub(crate) fn set_origin(&self, origin: Origin) {
        if origin.tells_something() {
            self.rare.get_or_init(|| memory::aside(|| Box::new(Rare::of(origin))));
        }
    }

    pub(crate) fn origin(&self) -> &Origin {
        self.rare.get().map_or(Origin::UNKNOWN, |rare| &rare.origin)
    }

    /// How long ago the work began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
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

    pub(crate) fn externals(&self) -> Option<&Table> {
        self.rare.get().map(|rare| &rare.externals)
    }

    #[cfg(feature = "redis")]
    pub(crate) fn caches(&self) -> Option<&Table> {
        self.rare.get().map(|rare| &rare.caches)
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(|| memory::aside(Box::default))
    }

    /// Sets how long the work was queued before it was started.
    #[cfg(feature = "http")]
    pub(crate) fn set_queue_time(&self, waited: Duration) {
        self.queue_time.store(nanos(waited), Relaxed);
    }

    /// Fixes which outer accounts are charged with this one, unless that is determined already.
    ///
    /// A command that began under some accounts must end under the same ones, and no parent may
    /// become a child of its own child. The driver reports the end of a command in another task,
    /// where its time may cut the work.
    #[cfg(feature = "mongodb")]
    pub(crate) fn settle(&self) {
        for meter in self.chain() {
            let times = [Resource::QueryTime, Resource::SlowQuery];
            let may_cut = times.iter().any(|time| meter.limits().hard_limits(*time));
            meter.flags.set(if may_cut { Flags::SETTLED | Flags::SHARED } else { Flags::SETTLED });
        }
    }

    /// Notes that other tasks may charge this account and its outer ones as well.
    pub(crate) fn share(&self) {
        self.each(|meter| meter.flags.set(Flags::SETTLED | Flags::SHARED));
    }

    /// The deadline of this work, regardless of those of outer works.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.timeless.load(Relaxed) {
            return None;
        }
        // A limit beyond the range of the clock is no limit.
        self.started.checked_add(self.limits().hard_time(Resource::TotalTime)?)
    }

    /// The time left until the first deadline of this work and the outer ones.
    pub(crate) fn remaining_time(&self) -> Option<Duration> {
        let deadline = self.chain().filter_map(|meter| meter.deadline()).min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// The tightest timeout for external calls of this name, regardless of the time that the work
    /// has left.
    pub(crate) fn external_timeout(&self, name: Key) -> Option<Duration> {
        let tightest = self.chain().map(|meter| meter.limits().external_timeout(name)).min()?;
        (tightest != NONE).then(|| Duration::from_nanos(tightest))
    }

    /// Cuts the work because its body had no frame for `waited`; `last` is what it was waiting for.
    #[cfg(feature = "http")]
    pub(crate) fn cut_idle(&self, waited: Duration, last: Option<InFlightSince>) -> Cut {
        self.reached(Resource::BodyIdle, nanos(waited), Suspect::Idling(last))
    }

    /// Cuts the work because its deadline has passed.
    pub(crate) fn cut_at_deadline(&self) -> Cut {
        self.reached(Resource::TotalTime, nanos(self.started.elapsed()), Suspect::Time)
    }

    /// Cuts the work at a hard limit on time, which its timer has reached.
    fn reached(&self, resource: Resource, observed: u64, suspect: Suspect) -> Cut {
        let limit = self.limits().hard(resource);
        self.cross_hard(resource, observed, limit, suspect);
        // If another limit was crossed before, that one is what ended the work; this crossing is
        // still the error.
        let known = self.cut().filter(|cut| cut.violation().resource == resource);
        let make = || self.violation(resource, Severity::Hard, observed, limit, suspect);
        known.cloned().unwrap_or_else(|| Cut::new(make()))
    }

    /// The crossed hard limit that ends the work, if one was crossed.
    #[inline]
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.rare.get()?.cut.get()
    }

    /// Whether [`cut`](Self::cut) or [`poll_cut`](Self::poll_cut) may return anything after a poll.
    #[inline]
    pub(crate) fn may_be_cut(&self) -> bool {
        self.flags.any(Flags::CUT | Flags::SHARED)
    }

    /// The crossed hard limit that ends the work, asked while it waits. If there is none yet, the
    /// current task is woken when another task of the work crosses one.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<&Cut> {
        if self.is_shared() {
            self.rare().waiter.set(cx);
        }
        self.cut()
    }

    /// Whether other tasks may charge this account as well.
    #[inline]
    fn is_shared(&self) -> bool {
        self.flags.any(Flags::SHARED)
    }

    fn wake(&self) {
        if self.is_shared()
            && let Some(rare) = self.rare.get()
        {
            rare.waiter.wake();
        }
    }

    /// Notes that the work is being ended from outside: it is cut, or its future is dropped.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
        #[cfg(feature = "diesel")]
        self.charge_pending();
    }

    /// Runs the destructors of a part of the work that is ended from outside.
    ///
    /// What other tasks of the work drop at the same time counts as ended from outside as well.
    pub(crate) fn while_abandoned(&self, destructors: impl FnOnce()) {
        struct Restore<'a>(&'a AtomicU32);

        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }

        let parts = &self.rare().parts_abandoned;
        parts.fetch_add(1, Relaxed);
        let _restore = Restore(parts);
        destructors();
    }

    /// Whether this work, or one that it runs inside, is being ended from outside.
    ///
    /// See [`abandon`](Self::abandon).
    #[cfg(feature = "sqlx")]
    pub(crate) fn is_abandoned(&self) -> bool {
        let part = |meter: &Self| {
            meter.rare.get().is_some_and(|rare| rare.parts_abandoned.load(Relaxed) > 0)
        };
        self.chain().any(|meter| meter.abandoned.load(Relaxed) || part(&meter))
    }

    /// Whether an operation was refused, so that output produced without it is not to be used.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    /// Whether more was refused than to work that ends at its first error, so that it seems to
    /// retry in a loop.
    pub(crate) fn is_refused_often(&self) -> bool {
        const OFTEN: u32 = 16;
        self.rare.get().is_some_and(|rare| rare.refusals.load(Relaxed) > OFTEN)
    }

    /// Checks the limits on the wall time for the last time when the headers of the response are
    /// known, if they end there.
    #[cfg(feature = "http")]
    pub(crate) fn end_clock_at_headers(&self) {
        if self.limits().end_at_headers {
            self.check_wall_time();
        }
    }

    /// Ends the wall time of the work.
    pub(crate) fn stop_clock(&self) {
        self.check_wall_time();
        // Only the first call counts.
        self.rare().stopped.get_or_init(|| self.started.elapsed());
    }

    fn check_wall_time(&self) {
        // Only the task that runs the work gets here, so there is no race between load and store.
        if !self.timeless.load(Relaxed) {
            self.timeless.store(true, Relaxed);
            // The clock is read only if there is a limit, and compared as it is, without
            // conversion.
            let limit =
                self.limits().lowest_wall_time.and_then(|lowest| self.started.checked_add(lowest));
            let is_above = limit.is_some_and(|limit| Instant::now() > limit);
            if is_above {
                self.cross_wall_time();
            }
        }
    }

    /// Whether there is a limit on the wall time that has not been checked for the last time.
    #[cfg(feature = "http")]
    fn has_wall_time_limit(&self) -> bool {
        !self.timeless.load(Relaxed) && self.limits().lowest_wall_time.is_some()
    }

    #[cold]
    fn cross_wall_time(&self) {
        let total = nanos(self.started.elapsed());
        self.check_afterwards(Resource::TotalTime, total);
        self.check_afterwards(Resource::SlowRequest, total);
    }

    /// Makes the checks that are only possible at the end.
    pub(crate) fn close(&self) {
        #[cfg(feature = "http")]
        self.end_outlived();
        self.check_wall_time();
        #[cfg(feature = "mongodb")]
        self.settle_commands();
        self.check(Resource::Retained, self.live.load(Relaxed), Suspect::Nobody);
        report::unmeasured::check(self.limits());
        if self.used(Resource::Queries) == 0 {
            self.strangers.check(self.limits(), &self.name);
        }
    }

    /// How many limits were crossed.
    pub(crate) fn violations(&self) -> u32 {
        // A hard crossing sets both bits, a soft one the lower.
        let soft = (1 << Resource::COUNT) - 1;
        (self.crossed.load(Relaxed) & soft).count_ones()
    }

    /// Whether each poll has to be [noted](Self::note_poll), or takes place in a span of its own.
    #[inline]
    pub(crate) fn observes_polls(&self) -> bool {
        self.flags.any(Flags::TIMES_POLLS | Flags::COMMANDS | Flags::SPAN)
    }

    /// Notes that a poll of the work begins. Returns when, if polls are timed.
    pub(crate) fn note_poll(&self) -> Option<Instant> {
        #[cfg(feature = "mongodb")]
        if let Some(commands) = self.commands() {
            commands.note_poll(self.started);
        }
        self.flags.any(Flags::TIMES_POLLS).then(Instant::now)
    }

    /// The MongoDB commands in flight.
    #[cfg(feature = "mongodb")]
    fn commands(&self) -> Option<&InFlight> {
        self.rare.get().map(|rare| &rare.commands)
    }

    /// The MongoDB commands in flight, to which the caller is going to add one.
    #[cfg(feature = "mongodb")]
    fn expect_commands(&self) -> &InFlight {
        let commands = &self.rare().commands;
        self.flags.set(Flags::COMMANDS);
        commands
    }

    /// Whether commands that must not be dropped midway are in flight.
    #[cfg(any(feature = "http", feature = "testing"))]
    pub(crate) fn has_commands_in_flight(&self) -> bool {
        #[cfg(feature = "mongodb")]
        return self.commands().is_some_and(|commands| commands.is_any_held());
        #[cfg(not(feature = "mongodb"))]
        false
    }

    /// Whether the work has started MongoDB commands.
    pub(crate) fn has_run_commands(&self) -> bool {
        self.flags.any(Flags::COMMANDS)
    }

    /// Ready if no command is in flight that must not be dropped midway; otherwise wakes the task
    /// when none is.
    pub(crate) fn poll_commands(&self, cx: &Context<'_>) -> Poll<()> {
        #[cfg(feature = "mongodb")]
        return self.commands().map_or(Poll::Ready(()), |commands| commands.poll_none_held(cx));
        #[cfg(not(feature = "mongodb"))]
        {
            let _ = cx;
            Poll::Ready(())
        }
    }

    /// How long the commands in flight have taken by now, in all.
    #[cfg(feature = "mongodb")]
    fn in_flight(&self) -> Duration {
        self.commands().map_or(Duration::ZERO, |commands| commands.time(self.started))
    }

    #[cfg(not(feature = "mongodb"))]
    fn in_flight(&self) -> Duration {
        Duration::ZERO
    }

    /// Bytes allocated less bytes freed, including frees of what others allocated; `None` if memory
    /// is not measured.
    pub(crate) fn net_memory(&self) -> Option<i64> {
        let signed = |bytes: &AtomicU64| i64::try_from(bytes.load(Relaxed)).unwrap_or(i64::MAX);
        let net = signed(&self.live).saturating_sub(signed(&self.freed_of_others));
        memory::is_measured().then_some(net)
    }

    fn largest_poll(&self) -> u64 {
        self.largest_poll.load(Relaxed)
    }

    pub(crate) fn used(&self, resource: Resource) -> u64 {
        self.used[resource.index()].load(Relaxed)
    }

    /// What has been used, including this much memory that is not charged yet.
    pub(crate) fn usage(&self, pending: Delta) -> Usage {
        let count = |resource| self.used(resource);
        let time = |resource| Duration::from_nanos(self.used(resource));
        let polls_are_timed = self.limits().names(Resource::PollTime);
        let live = self.live.load(Relaxed);
        let peak = live.saturating_add(pending.peak).max(count(Resource::Memory));
        let rare = self.rare.get();
        let stopped = rare.and_then(|rare| rare.stopped.get().copied());
        let queue_time = self.queue_time.load(Relaxed);
        let measured = |bytes| memory::is_measured().then_some(bytes);
        Usage {
            queries: count(Resource::Queries),
            repeated_queries: count(Resource::RepeatedQueries),
            writes: count(Resource::Writes),
            observed: rare.map_or(0, |rare| rare.observed.count()),
            rows: count(Resource::Rows),
            transactions: count(Resource::Transactions),
            query_time: time(Resource::QueryTime).saturating_add(self.in_flight()),
            slow_query: time(Resource::SlowQuery),
            connection_wait: time(Resource::ConnectionWait),
            unmetered: rare.map_or(0, |rare| rare.unmetered.load(Relaxed)),
            cache_calls: count(Resource::CacheCalls),
            repeated_cache_calls: count(Resource::RepeatedCacheCalls),
            cache_time: time(Resource::CacheTime),
            memory: measured(peak),
            allocated: measured(count(Resource::Allocated).saturating_add(pending.allocated)),
            retained: measured(live.saturating_add_signed(pending.net)),
            external_calls: count(Resource::ExternalCalls),
            external_time: time(Resource::ExternalTime),
            total_time: stopped.unwrap_or_else(|| self.started.elapsed()),
            queue_time: (queue_time != UNKNOWN).then(|| Duration::from_nanos(queue_time)),
            poll_time: polls_are_timed.then(|| time(Resource::PollTime)),
            busy_time: polls_are_timed.then(|| Duration::from_nanos(self.busy.load(Relaxed))),
            response_bytes: count(Resource::ResponseBytes),
        }
    }
}

/// Overwrites a value that needs no drop, which the compiler cannot know.
#[inline]
fn fill<T>(empty: &mut T, value: T) {
    let _ = ManuallyDrop::new(mem::replace(empty, value));
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Allocated at nobody's charge, so freed likewise, except for what the user allocated.
        if let Some(rare) = self.rare.take() {
            drop(memory::aside(|| rare.into_foreign_parts()));
        }
        if let Some(ancestors) = self.ancestors.take() {
            memory::aside(|| drop(ancestors));
        }
    }
}
