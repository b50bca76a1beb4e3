//! Warns once about each resource that a budget limits but nothing measures.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tracing::{Level, event};

use super::fields::{HEALTH, RESOURCE};
use crate::budget::Limits;
use crate::memory;
use crate::resource::Resource;

/// Set by everything that counts statements: an instrumented pool or client, or a guard.
static STATEMENTS_ARE_METERED: AtomicBool = AtomicBool::new(false);

/// Set by clients that count commands without their texts.
#[cfg(feature = "mongodb")]
static COMMANDS_ARE_ONLY_COUNTED: AtomicBool = AtomicBool::new(false);

/// Notes that this process has a client that counts commands without their texts.
#[cfg(feature = "mongodb")]
pub(crate) fn commands_are_only_counted() {
    COMMANDS_ARE_ONLY_COUNTED.store(true, Relaxed);
}

/// Set by an instrumented connection to a cache.
static CACHES_ARE_METERED: AtomicBool = AtomicBool::new(false);

/// Notes that this process has something that counts calls to caches.
#[cfg(feature = "redis")]
pub(crate) fn caches_are_metered() {
    CACHES_ARE_METERED.store(true, Relaxed);
}

/// Whether this process has something that counts calls to caches.
#[cfg(feature = "testing")]
pub(crate) fn has_cache() -> bool {
    CACHES_ARE_METERED.load(Relaxed)
}

/// Notes that this process has something that counts statements.
pub(crate) fn statements_are_metered() {
    // Read first, because a store would invalidate the cache line of every other thread that reads
    // it.
    if !STATEMENTS_ARE_METERED.load(Relaxed) {
        STATEMENTS_ARE_METERED.store(true, Relaxed);
    }
}

/// Whether this process has something that counts statements.
#[cfg(feature = "testing")]
pub(crate) fn is_metered() -> bool {
    STATEMENTS_ARE_METERED.load(Relaxed)
}

/// Checks, when a unit of work ends, whether every resource that its budget limits is measured.
///
/// It does so at the end and not at the start, because the first request may create the pool that
/// it needs.
#[inline]
pub(crate) fn check(limits: &Limits) {
    if !IS_SETTLED.load(Relaxed) || are_commands_only_counted() {
        look(limits);
    }
}

/// Set once everything that can be limited is measured, or a warning was emitted about it.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// Whether a client counts commands without their texts; such a client may be created at any time.
#[inline]
fn are_commands_only_counted() -> bool {
    #[cfg(feature = "mongodb")]
    return COMMANDS_ARE_ONLY_COUNTED.load(Relaxed);
    #[cfg(not(feature = "mongodb"))]
    false
}

#[cold]
fn look(limits: &Limits) {
    let mut is_settled = true;
    if !STATEMENTS_ARE_METERED.load(Relaxed) {
        static SAID: AtomicBool = AtomicBool::new(false);
        const WHY: &str = "no metered pool or client exists in this process: these limits can \
                           never be crossed, whatever the work uses";
        is_settled &= say(&SAID, limits, &STATEMENTS, WHY);
    }
    #[cfg(feature = "mongodb")]
    if are_commands_only_counted() {
        static SAID: AtomicBool = AtomicBool::new(false);
        const WHY: &str = "a MongoDB client of this process counts commands without knowing which \
                           (`Detail::Counts`): these limits see nothing of it";
        say(&SAID, limits, &TOLD_APART, WHY);
    }
    if !CACHES_ARE_METERED.load(Relaxed) {
        static SAID: AtomicBool = AtomicBool::new(false);
        const WHY: &str = "no metered connection to a cache exists in this process: these limits \
                           can never be crossed, whatever the work uses";
        say(&SAID, limits, &CACHES, WHY);
    }
    if !memory::is_measured() {
        static SAID: AtomicBool = AtomicBool::new(false);
        const WHY: &str = "the counting allocator is not installed in this process: these limits \
                           can never be crossed, whatever the work uses";
        is_settled &= say(&SAID, limits, &MEMORY, WHY);
    }
    if is_settled {
        IS_SETTLED.store(true, Relaxed);
    }
}

/// Checks, when a task starts, whether its budget limits a resource that only responses have.
pub(crate) fn check_task(limits: &Limits) {
    static SAID: AtomicBool = AtomicBool::new(false);
    say(
        &SAID,
        limits,
        &RESPONSES,
        "a task has no response: these limits can never be crossed by one",
    );
}

pub(crate) const STATEMENTS: [Resource; 8] = [
    Resource::Queries,
    Resource::RepeatedQueries,
    Resource::Writes,
    Resource::Rows,
    Resource::Transactions,
    Resource::QueryTime,
    Resource::SlowQuery,
    Resource::ConnectionWait,
];

#[cfg(feature = "mongodb")]
const TOLD_APART: [Resource; 4] =
    [Resource::RepeatedQueries, Resource::Writes, Resource::Rows, Resource::Transactions];

pub(crate) const CACHES: [Resource; 3] =
    [Resource::CacheCalls, Resource::RepeatedCacheCalls, Resource::CacheTime];

const RESPONSES: [Resource; 2] = [Resource::ResponseBytes, Resource::BodyIdle];

pub(crate) const MEMORY: [Resource; 3] =
    [Resource::Memory, Resource::Allocated, Resource::Retained];

/// Emits the warning once, if any of these resources is limited; returns whether it has been
/// emitted.
fn say(said: &AtomicBool, limits: &Limits, resources: &[Resource], why: &str) -> bool {
    let named = || resources.iter().filter(|resource| limits.names(**resource));
    if said.load(Relaxed) {
        return true;
    }
    if named().next().is_none() {
        return false;
    }
    if said.swap(true, Relaxed) {
        return true;
    }
    let names = named().map(|resource| resource.name()).collect::<Vec<_>>().join(", ");
    event!(
        target: HEALTH,
        Level::WARN,
        { RESOURCE } = names,
        "a budget limits {names}, but {why}",
    );
    true
}
