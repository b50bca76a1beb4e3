//! What was begun, what was acknowledged and what was reported: the other side of every comparison.

use std::collections::{BTreeMap, HashMap};
use std::mem::take;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use request_budget::Violation;
use request_budget::report::{Outcome, Report, Reporter};

use crate::random::Random;

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Store {
    Sqlite,
    Postgres,
    Mariadb,
    Mongodb,
}

impl Store {
    pub const ALL: [Self; 4] = [Self::Sqlite, Self::Postgres, Self::Mariadb, Self::Mongodb];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
            Self::Mongodb => "mongodb",
        }
    }
}

/// How far a write has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing of it may be in the database: its commit was never begun.
    NotCommitted,
    /// All of it or nothing may be there: nobody was told the result of the commit.
    Unknown,
    /// All of it must be there.
    Committed,
}

#[derive(Debug, Clone, Copy)]
pub struct Write {
    pub work: u64,
    pub store: Store,
    pub parts: i64,
    pub state: State,
}

/// One request or job.
#[derive(Debug)]
struct Entry {
    kind: Arc<str>,
    /// What the client asked for, and how it was going to misbehave.
    plan: String,
    step: &'static str,
    reports: u32,
    outcome: Option<Outcome>,
    hard_violations: u32,
    /// The client has read a whole answer with this status.
    answer: Option<u16>,
}

impl Entry {
    fn describe(&self, id: u64) -> String {
        let Self { kind, plan, step, outcome, answer, .. } = self;
        format!(
            "{kind} {id} ({plan}), last step {step:?}, outcome {outcome:?}, client read {answer:?}"
        )
    }
}

/// Totals of the whole run.
#[derive(Debug, Default)]
pub struct Totals {
    pub started: AtomicU64,
    pub reported: AtomicU64,
    pub committed: AtomicU64,
    pub unknown: AtomicU64,
    pub reporter_panics: AtomicU64,
    /// Handlers that have failed on a connection whose session they may have changed, and closed
    /// it, by [`Store`].
    pub closed: [AtomicU64; 3],
    pub outcomes: [AtomicU64; 5],
}

#[derive(Debug, Default)]
pub struct Ledger {
    works: Mutex<HashMap<u64, Entry>>,
    writes: Mutex<HashMap<i64, Write>>,
    failures: Mutex<BTreeMap<&'static str, (u64, Vec<String>)>>,
    next_work: AtomicU64,
    next_key: AtomicI64,
    round: AtomicI64,
    /// Started and not reported.
    pub open: AtomicI64,
    /// Carried children, which may outlive their parents.
    pub children: AtomicI64,
    /// Reporters that are alive: each is kept by the account of one unit of work.
    pub reporters: AtomicI64,
    pub totals: Totals,
}

/// Reporters panic, so a poisoned lock is no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    pub fn start(
        self: &Arc<Self>,
        kind: impl Into<Arc<str>>,
        plan: String,
        pace: Duration,
    ) -> Work {
        let id = self.next_work.fetch_add(1, Relaxed);
        self.totals.started.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        let kind = kind.into();
        let entry = Entry {
            kind,
            plan,
            step: "started",
            reports: 0,
            outcome: None,
            hard_violations: 0,
            answer: None,
        };
        lock(&self.works).insert(id, entry);
        Work { id, ledger: self.clone(), random: Random::new(id), pace }
    }

    pub fn fail(&self, check: &'static str, what: impl FnOnce() -> String) {
        let mut failures = lock(&self.failures);
        let (count, examples) = failures.entry(check).or_default();
        *count += 1;
        if examples.len() < 5 {
            examples.push(what());
        }
    }

    pub fn has_failures(&self) -> bool {
        !lock(&self.failures).is_empty()
    }

    /// Prints the failures so far, and returns whether there are any.
    pub fn print_failures(&self) -> bool {
        let failures = lock(&self.failures);
        for (check, (count, examples)) in &*failures {
            println!("FAIL {check}: {count} times, as");
            examples.iter().for_each(|example| println!("    {example}"));
        }
        !failures.is_empty()
    }

    pub fn describe(&self, work: u64) -> String {
        lock(&self.works).get(&work).map_or(format!("work {work}"), |entry| entry.describe(work))
    }

    /// What may have taken named locks: the works of this store's kinds that do.
    pub fn ids(&self, store: &str) -> Vec<u64> {
        let works = lock(&self.works);
        let takes_locks = |kind: &str| kind.ends_with("/lock") || kind.ends_with("/body");
        let of = |entry: &Entry| entry.kind.contains(store) && takes_locks(&entry.kind);
        works.iter().filter(|(_, entry)| of(entry)).map(|(id, _)| *id).collect()
    }

    pub fn round(&self) -> i64 {
        self.round.load(Relaxed)
    }

    /// The client has read a complete answer.
    pub fn answered(&self, work: u64, status: u16) {
        if let Some(entry) = lock(&self.works).get_mut(&work) {
            entry.answer = Some(status);
        }
    }

    pub fn unreported(&self) -> Vec<String> {
        let works = lock(&self.works);
        let open = works.iter().filter(|(_, entry)| entry.reports == 0);
        open.map(|(id, entry)| entry.describe(*id)).collect()
    }

    /// Compares reports with what was started, and with what clients have read.
    pub fn check_reports(&self) {
        for (id, entry) in &*lock(&self.works) {
            if entry.reports != 1 {
                let times = entry.reports;
                self.fail("reported once", || format!("{times} times: {}", entry.describe(*id)));
            }
            let is_cut = entry.outcome == Some(Outcome::Cut);
            if is_cut && entry.hard_violations == 0 {
                self.fail("cut with a violation", || entry.describe(*id));
            }
            let is_told = match entry.answer {
                Some(200) => entry.outcome == Some(Outcome::Ok),
                Some(500) => entry.outcome == Some(Outcome::Error),
                Some(503) => is_cut,
                _ => true,
            };
            if !is_told {
                self.fail("outcome as the client saw it", || entry.describe(*id));
            }
        }
    }

    /// Compares the rows that are there, a count by key, with what was acknowledged.
    pub fn check_rows(&self, store: Store, rows: &HashMap<i64, i64>) {
        let writes = lock(&self.writes);
        for (key, write) in writes.iter().filter(|(_, write)| write.store == store) {
            let there = rows.get(key).copied().unwrap_or(0);
            let describe = || {
                let (parts, name) = (write.parts, store.name());
                format!("{there} of {parts} rows in {name}: {}", self.describe(write.work))
            };
            match write.state {
                State::Committed if there != write.parts => {
                    self.fail("no acknowledged write lost", describe);
                }
                State::NotCommitted if there != 0 => {
                    self.fail("nothing that was not committed", describe);
                }
                State::Unknown if there != 0 && there != write.parts => {
                    self.fail("whole or not at all", describe);
                }
                _ => {}
            }
        }
        for key in rows.keys().filter(|key| !writes.contains_key(key)) {
            self.fail("no row from nowhere", || format!("key {key} in {}", store.name()));
        }
    }

    /// Forgets what has been compared, so that memory shows only what the library keeps.
    pub fn forget(&self) {
        for write in take(&mut *lock(&self.writes)).into_values() {
            match write.state {
                State::Committed => self.totals.committed.fetch_add(1, Relaxed),
                State::Unknown => self.totals.unknown.fetch_add(1, Relaxed),
                State::NotCommitted => 0,
            };
        }
        take(&mut *lock(&self.works));
        self.round.fetch_add(1, Relaxed);
    }
}

/// One request or job, for its handler.
#[derive(Debug, Clone)]
pub struct Work {
    pub id: u64,
    pub random: Random,
    ledger: Arc<Ledger>,
    pace: Duration,
}

/// Rows that are written together.
#[derive(Debug, Clone, Copy)]
pub struct Key(pub i64);

impl Work {
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Notes where the handler is.
    pub fn step(&self, step: &'static str) {
        if let Some(entry) = lock(&self.ledger.works).get_mut(&self.id) {
            entry.step = step;
        }
    }

    /// Waits between two statements, where it may be cut.
    pub async fn pause(&self, step: &'static str) {
        self.step(step);
        match self.random.below(4) {
            0 => tokio::task::yield_now().await,
            _ => tokio::time::sleep(self.pace.mul_f64(self.random.unit())).await,
        }
    }

    /// Registers rows before the first of them is sent.
    pub fn write(&self, store: Store, parts: i64) -> Key {
        let key = self.ledger.next_key.fetch_add(1, Relaxed);
        let write = Write { work: self.id, store, parts, state: State::NotCommitted };
        lock(&self.ledger.writes).insert(key, write);
        Key(key)
    }

    /// The commit is about to be sent.
    pub fn commits(&self, key: Key) {
        self.set(key, State::Unknown);
    }

    /// The commit has succeeded.
    pub fn committed(&self, key: Key) {
        self.set(key, State::Committed);
    }

    fn set(&self, key: Key, state: State) {
        if let Some(write) = lock(&self.ledger.writes).get_mut(&key.0) {
            write.state = state;
        }
    }

    pub fn reporter(&self, panics: bool, is_job: bool) -> One {
        self.ledger.reporters.fetch_add(1, Relaxed);
        One { id: self.id, ledger: self.ledger.clone(), panics, is_job }
    }

    /// Counts a child until it is dropped.
    pub fn child(&self) -> Child {
        self.ledger.children.fetch_add(1, Relaxed);
        Child(self.ledger.clone())
    }
}

pub struct Child(Arc<Ledger>);

impl Drop for Child {
    fn drop(&mut self) {
        self.0.children.fetch_sub(1, Relaxed);
    }
}

/// The reporter of one unit of work, of which some panic.
pub struct One {
    id: u64,
    ledger: Arc<Ledger>,
    panics: bool,
    is_job: bool,
}

impl One {
    fn panic(&self) {
        if self.panics {
            self.ledger.totals.reporter_panics.fetch_add(1, Relaxed);
            panic!("{}: a reporter", crate::ON_PURPOSE);
        }
    }
}

impl Reporter for One {
    fn violation(&self, violation: &Violation) {
        if violation.severity == request_budget::Severity::Hard
            && let Some(entry) = lock(&self.ledger.works).get_mut(&self.id)
        {
            entry.hard_violations += 1;
        }
        self.panic();
    }

    fn finished(&self, report: &Report<'_>) {
        let outcome = report.outcome();
        let id = self.id.to_string();
        if self.is_job && report.attributes().value("id") != Some(&id) {
            self.ledger.fail("attributes", || format!("{:?} of job {id}", report.attributes()));
        }
        self.ledger.totals.reported.fetch_add(1, Relaxed);
        self.ledger.totals.outcomes[place(outcome)].fetch_add(1, Relaxed);
        let mut works = lock(&self.ledger.works);
        match works.get_mut(&self.id) {
            Some(entry) => {
                entry.reports += 1;
                entry.outcome = Some(outcome);
                if entry.reports == 1 {
                    self.ledger.open.fetch_sub(1, Relaxed);
                }
            }
            None => self.ledger.fail("reported once", || format!("{id} again, after its round")),
        }
        drop(works);
        self.panic();
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.ledger.reporters.fetch_sub(1, Relaxed);
    }
}

pub const OUTCOMES: [Outcome; 5] =
    [Outcome::Ok, Outcome::Error, Outcome::Cut, Outcome::Panicked, Outcome::Cancelled];

fn place(outcome: Outcome) -> usize {
    OUTCOMES.iter().position(|known| *known == outcome).expect("all are known")
}
