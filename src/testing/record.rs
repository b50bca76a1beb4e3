//! The record of a measurement.

use std::any;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};

use super::attribution;
use super::dialect::{dialect, sole_database};
use super::doubts::Warned;
use super::message::{self, Unseen};
use super::site::{self, Lack, Place};
use super::statement::normalise;
use super::tickets::Unlogged;
use super::warning::Judged;
use crate::escape;
use crate::memory::{self, Delta};
use crate::meter::Meter;
use crate::meter::recording::{Entry, Existing, Kind, Recording, Site, Stray, Woken};
use crate::meter::table::Key;
use crate::report::unmeasured;
use crate::usage::Usage;
use crate::writes::is_write;

/// What measured work did, and what it returned.
///
/// Its serialised form holds only counts: statements with their executions and rows, transactions,
/// external calls and unmetered statements, each sorted by its text. It holds no times, no memory
/// and no places, because these change while the work does the same. See the [module docs](super)
/// for snapshots.
#[derive(Debug, Clone)]
///
/// A record that is dropped without an assertion, and of which only the output was read, prints a
/// warning to standard error.
#[must_use = "it asserts nothing by itself"]
pub struct Record<T = ()> {
    output: T,
    account: Account,
    judged: Judged,
}

/// Everything in a record but the output.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) usage: Usage,
    pub(super) statements: Vec<Statement>,
    pub(super) transactions: Vec<Statement>,
    pub(super) cache_calls: Vec<Statement>,
    pub(super) external_calls: Vec<ExternalCall>,
    pub(super) unmetered: Vec<Statement>,
    pub(super) elsewhere: Vec<Statement>,
    pub(super) peak: Option<Site>,
    pub(super) sight: Sight,
    pub(super) surroundings: Surroundings,
    pub(super) warned: Warned,
}

/// What happened around the work; analysed only when an assertion passes, because that is slow.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) wakes: Vec<Woken>,
    /// What ran outside of the runtime while the work was polled, in threads and tasks that began
    /// meanwhile.
    pub(super) outside: Vec<Arc<Entry>>,
    /// What ran in the runtime outside of all recorded work, whether suspected to belong to it or
    /// not.
    pub(super) inside: Vec<Arc<Entry>>,
    /// How many tasks it has spawned whose statements are not recorded.
    pub(super) uncarried: usize,
    /// The runtime has more tasks than before.
    pub(super) has_more_tasks: bool,
    /// The newest task and thread that existed before the measurement.
    pub(super) newest: (Option<u64>, Option<u64>),
}

/// What the measurement was able to see.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// Something in this process counts statements.
    pub(super) pool_exists: bool,
    /// Something in this process counts calls to caches.
    pub(super) cache_exists: bool,
    pub(super) memory: bool,
    /// Why not all events of sqlx were received, where that is so.
    pub(super) unseen: Option<Unseen>,
    /// How many responses had a streamed body that was not read to its end.
    pub(super) unread: usize,
    /// The output seems to be a future, which was never awaited.
    pub(super) returns_future: bool,
    /// How many carried tasks it did not wait for.
    pub(super) carried: usize,
    /// What a `Recorder` saw of its server; `None` without one.
    pub(super) served: Option<Served>,
}

/// The requests that a server received while a client was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    pub(super) requests: usize,
    /// How many were still running at the end.
    pub(super) unfinished: usize,
}

/// A statement without its values, with the totals of its executions.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Statement {
    /// Its text, in which values and placeholders are `?`, lists of values have one item, and
    /// comments are removed.
    ///
    /// `"x"` is a value in MySQL and MariaDB, and an identifier elsewhere. The database of a
    /// statement that no metered connection has executed is that of the driver on the stack. In a
    /// program that is stripped of its symbols it is the database of the metered statements of the
    /// record, if they have only one; otherwise `"x"` is left unchanged. In the mode `ANSI_QUOTES`
    /// MySQL reads `"x"` as an identifier, but here it is still a value.
    #[serde(serialize_with = "escape::serialize")]
    pub text: String,
    /// How often it was executed.
    pub executions: u64,
    /// How often its text was executed on the database that executed it most often.
    ///
    /// It is less than [`executions`](Self::executions) if the text was executed on several
    /// databases, or if it is a batch, in which each statement is an execution.
    #[serde(skip)]
    pub repetitions: u64,
    /// Rows that were returned to the caller.
    pub rows: u64,
    /// How long the work waited for it in total.
    #[serde(skip)]
    pub time: Duration,
    /// The longest wait for one execution.
    #[serde(skip)]
    pub longest: Duration,
    #[serde(skip)]
    sites: Vec<(Site, u64)>,
}

/// An external system, with the totals of the calls to it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ExternalCall {
    /// The name given to [`external`](crate::ExternalExt::external).
    #[serde(serialize_with = "escape::serialize")]
    pub name: String,
    /// How often it was called.
    pub calls: u64,
    /// How long the calls took in total.
    #[serde(skip)]
    pub time: Duration,
    /// The longest call.
    #[serde(skip)]
    pub longest: Duration,
    #[serde(skip)]
    sites: Vec<(Site, u64)>,
}

/// A place that executed a statement or made a call, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallSite {
    /// The place in the user's code, followed by its callers; empty if none is known.
    pub places: Vec<Place>,
    /// How often.
    pub times: u64,
    /// Why no place is known.
    pub(super) lack: Option<Lack>,
}

impl<T> Record<T> {
    pub(super) fn new(
        output: T,
        meter: &Meter,
        recording: &Recording,
        unlogged: &Unlogged,
        served: Option<Served>,
        measured_at: &'static Location<'static>,
    ) -> Self {
        let account = || {
            let mut account = Account::new(meter, recording, unlogged, served);
            account.sight.returns_future = is_future(any::type_name::<T>());
            account
        };
        let judged = || Judged::later(measured_at);
        Self { output, account: memory::aside(account), judged: memory::aside(judged) }
    }

    /// What the work used.
    pub fn usage(&self) -> &Usage {
        &self.account().usage
    }

    /// What the work returned.
    pub fn output(&self) -> &T {
        &self.output
    }

    /// Takes out what the work returned.
    pub fn into_output(self) -> T {
        self.output
    }

    /// The same record with another output, as the `Ok` of a result.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Record<U> {
        let Self { output, account, judged } = self;
        Record { output: map(output), account, judged }
    }

    /// The statements that it executed, sorted by their text.
    ///
    /// The commands of a MongoDB client at detail [`Counts`](crate::mongodb::Detail::Counts) are
    /// one statement here.
    pub fn statements(&self) -> &[Statement] {
        &self.account().statements
    }

    /// The commands that it sent to caches, grouped and sorted by their kind, such as `GET user:*`.
    ///
    /// Recorded by the feature `redis`. A pipeline is one command.
    pub fn cache_calls(&self) -> &[Statement] {
        &self.account().cache_calls
    }

    /// The external systems that it called, sorted by name.
    pub fn external_calls(&self) -> &[ExternalCall] {
        &self.account().external_calls
    }

    /// The statements that passed through no metered connection, sorted by their text.
    ///
    /// These are the statements of plain sqlx pools, at whatever level the pools log, and the
    /// `LISTEN` of a listener. Not seen is what sqlx emits no event for: `COPY`, and pools with
    /// statement logging switched off.
    pub fn unmetered(&self) -> &[Statement] {
        &self.account().unmetered
    }

    /// The statements that ran meanwhile in the same tokio runtime, outside of all measured work,
    /// and that may belong to this work; sorted by their text.
    ///
    /// They passed through metered pools and clients in tasks that were spawned without
    /// `in_current_budget`, or in a server that no [`Recorder`](super::Recorder) measures. No count
    /// includes them. Statements that are known to belong to other work are left out: see [what is
    /// suspected](super#what-is-suspected).
    pub fn elsewhere(&self) -> &[Statement] {
        &self.account().elsewhere
    }

    /// Where it was measured.
    pub(super) fn measured_at(&self) -> &'static Location<'static> {
        self.judged.measured_at()
    }

    /// What was measured; calling this marks the record as read.
    pub(super) fn account(&self) -> &Account {
        self.judged.now();
        &self.account
    }
}

impl<T> Serialize for Record<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            queries: u64,
            rows: u64,
            transactions: u64,
            statements: &'a [Statement],
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            cache_calls: &'a [Statement],
            external_calls: &'a [ExternalCall],
            unmetered: &'a [Statement],
        }

        let Account { usage, statements, cache_calls, external_calls, unmetered, .. } =
            self.account();
        let Usage { queries, rows, transactions, .. } = *usage;
        Shape { queries, rows, transactions, statements, cache_calls, external_calls, unmetered }
            .serialize(serializer)
    }
}

impl Surroundings {
    fn of(recording: &Recording, inside: &[Stray], outside: Vec<Stray>) -> Self {
        let Existing { task, thread } = *recording.existing();
        let spawned = recording.spawned().clone();
        let is_begun_by_it = |stray: &Stray| match stray.ran.task {
            Some(task) => spawned.own.iter().any(|own| own.contains(&task)),
            None => stray.ran.thread > thread,
        };
        let outside = outside.into_iter().filter(|stray| !stray.ran.is_in_unit);
        Self {
            wakes: recording.wakes(),
            outside: outside.filter(is_begun_by_it).map(|stray| stray.entry).collect(),
            inside: inside.iter().map(|stray| stray.entry.clone()).collect(),
            uncarried: spawned.unknown(),
            has_more_tasks: recording.has_more_tasks(),
            newest: (task, thread),
        }
    }
}

impl Account {
    fn new(
        meter: &Meter,
        recording: &Recording,
        unlogged: &Unlogged,
        served: Option<Served>,
    ) -> Self {
        let mut entries = recording.entries();
        entries.extend(seen_late(meter, &entries));
        entries.extend(
            unlogged
                .statements
                .iter()
                .map(|site| Entry::new(Kind::Unmetered, Some(message::UNLOGGED), site.clone())),
        );
        let sole = sole_database(&entries);
        let of =
            |is: fn(Kind) -> bool| tally(sole, entries.iter().filter(|e| is(e.kind)).map(|e| &**e));
        let statement = |(text, tally): (String, Tally)| Statement {
            text,
            executions: tally.times,
            repetitions: tally.texts.values().max().copied().unwrap_or_default(),
            rows: tally.rows,
            time: tally.time,
            longest: tally.longest,
            sites: tally.sites,
        };
        let external = |(name, tally): (String, Tally)| ExternalCall {
            name,
            calls: tally.times,
            time: tally.time,
            longest: tally.longest,
            sites: tally.sites,
        };
        let unmetered = |entry: &&Arc<Entry>| entry.kind == Kind::Unmetered;
        let has_served = served.is_some_and(|served| served.requests > 0);
        let mut strays = recording.strays();
        strays.retain(|stray| !is_of_driver(&stray.entry));
        let outside;
        (strays, outside) = strays.into_iter().partition(|stray| stray.is_in_runtime);
        let suspects = attribution::suspects(recording, &strays, has_served);
        let surroundings = Surroundings::of(recording, &strays, outside);
        let mut usage = meter.usage(Delta::default());
        usage.unmetered = entries.iter().filter(unmetered).map(|entry| entry.times()).sum();
        Self {
            usage,
            statements: of(Kind::is_statement).into_iter().map(statement).collect(),
            transactions: of(Kind::is_transaction).into_iter().map(statement).collect(),
            cache_calls: of(Kind::is_cache_call).into_iter().map(statement).collect(),
            external_calls: of(|kind| kind == Kind::External).into_iter().map(external).collect(),
            unmetered: of(|kind| kind == Kind::Unmetered).into_iter().map(statement).collect(),
            elsewhere: tally(sole, suspects.iter().map(|stray| &*stray.entry))
                .into_iter()
                .map(statement)
                .collect(),
            peak: recording.peak(),
            sight: Sight {
                pool_exists: unmeasured::is_metered(),
                cache_exists: unmeasured::has_cache(),
                memory: memory::is_measured(),
                unseen: match () {
                    () if LevelFilter::DEBUG > STATIC_MAX_LEVEL => Some(message::NO_EVENTS),
                    () if recording.is_masked() => Some(message::MASKED),
                    () if unlogged.is_vague => Some(message::NO_LOGGING),
                    () => None,
                },
                carried: recording.carried(),
                served,
                unread: recording.unread(),
                returns_future: false,
            },
            surroundings,
            warned: Warned::default(),
        }
    }

    /// Where the peak of memory was reached, if its stack was captured.
    pub(super) fn peak(&self) -> Option<Place> {
        site::places(self.peak.as_ref()?).into_iter().next()
    }

    /// All statements that were executed, counted or not.
    pub(super) fn queries(&self) -> u64 {
        self.usage.queries.saturating_add(self.usage.unmetered)
    }

    /// How many statements write, counted or not.
    pub(super) fn writes(&self) -> u64 {
        let unmetered = self.unmetered.iter().filter(|statement| is_write(&statement.text));
        unmetered
            .map(|statement| statement.executions)
            .sum::<u64>()
            .saturating_add(self.usage.writes)
    }

    /// Statements, counted ones first.
    pub(super) fn all_statements(&self) -> impl Iterator<Item = &Statement> {
        self.statements.iter().chain(&self.unmetered)
    }

    /// How many statements ran meanwhile outside of all measured work.
    pub(super) fn elsewhere(&self) -> u64 {
        self.elsewhere.iter().map(|statement| statement.executions).sum()
    }
}

impl Statement {
    /// The places that executed it, the most frequent first.
    #[must_use]
    pub fn sites(&self) -> Vec<CallSite> {
        resolve(&self.sites)
    }
}

impl ExternalCall {
    /// The places that called it, the most frequent first.
    #[must_use]
    pub fn sites(&self) -> Vec<CallSite> {
        resolve(&self.sites)
    }
}

/// Whether a type of this name seems to be a future: an async function, an async block, or a boxed
/// future.
fn is_future(name: &str) -> bool {
    let inner = name.trim_start_matches("core::pin::Pin<").trim_start_matches("alloc::boxed::Box<");
    let is_boxed = inner.starts_with("dyn core::future::future::Future");
    is_boxed || name.ends_with("::{{closure}}") || name.ends_with("::{{closure}}>>")
}

/// Whether it belongs to the MongoDB driver, which ends sessions and closes cursors in tasks of its
/// own.
fn is_of_driver(entry: &Entry) -> bool {
    let has_no_place = || site::places(&entry.site).is_empty();
    entry.text().is_none() && has_no_place() && site::lack(&entry.site) == Lack::UserCode
}

/// The unmetered statements whose event could not be distinguished from that of a metered
/// connection, because the same text was executed there at the same time and ended later.
fn seen_late(meter: &Meter, entries: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
    let unmetered = || entries.iter().filter(|entry| entry.kind == Kind::Unmetered);
    let mut late = Vec::new();
    for (entry, times) in meter.statements().uncounted() {
        let same =
            unmetered().filter(|other| other.text().is_some_and(|t| entry.is_of(Key::of(t))));
        let known = same.map(|other| other.times()).sum::<u64>();
        for _ in known..times {
            late.push(Entry::new(Kind::Unmetered, Some(entry.text()), Site::default()));
        }
    }
    late
}

fn resolve(sites: &[(Site, u64)]) -> Vec<CallSite> {
    let mut times: BTreeMap<(Vec<Place>, Option<Lack>), u64> = BTreeMap::new();
    for (site, n) in sites {
        let places = site::places(site);
        let lack = places.is_empty().then(|| site::lack(site));
        let sum = times.entry((places, lack)).or_default();
        *sum = sum.saturating_add(*n);
    }
    let mut sites: Vec<_> =
        times.into_iter().map(|((places, lack), times)| CallSite { places, times, lack }).collect();
    sites.sort_by_key(|site| std::cmp::Reverse(site.times));
    sites
}

/// The totals of the entries of one text.
#[derive(Debug, Default)]
struct Tally {
    times: u64,
    /// How often the whole text was executed on each database.
    texts: HashMap<u32, u64>,
    rows: u64,
    time: Duration,
    longest: Duration,
    sites: Vec<(Site, u64)>,
}

fn tally<'a>(
    sole: &'static str,
    entries: impl Iterator<Item = &'a Entry>,
) -> BTreeMap<String, Tally> {
    let mut normal: HashMap<(Option<&str>, &str), String> = HashMap::new();
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    for entry in entries {
        let text = entry.text().unwrap_or("(a command of MongoDB; `Detail::Commands` names it)");
        let dialect = dialect(entry, text, sole);
        let name = normal.entry((dialect, text)).or_insert_with(|| match dialect {
            Some(_) if text == message::UNLOGGED => text.to_owned(),
            Some(database) => normalise(text, database),
            None => text.to_owned(),
        });
        let tally = match all.get_mut(name) {
            Some(tally) => tally,
            None => all.entry(name.clone()).or_default(),
        };
        tally.times = tally.times.saturating_add(entry.times());
        let texts = tally.texts.entry(entry.database()).or_default();
        *texts = texts.saturating_add(1);
        tally.rows = tally.rows.saturating_add(entry.rows());
        tally.time = tally.time.saturating_add(entry.time());
        tally.longest = tally.longest.max(entry.time());
        match tally.sites.iter_mut().find(|(site, _)| *site == entry.site) {
            Some((_, times)) => *times = times.saturating_add(entry.times()),
            None => tally.sites.push((entry.site.clone(), entry.times())),
        }
    }
    all
}
