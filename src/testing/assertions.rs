//! The assertions of a record.

use std::panic::Location;

use super::advice;
use super::doubts;
use super::message::{self, Failure};
use super::record::{Account, Record};
use super::repetitions;
use crate::budget::Budget;
use crate::key::Key;
use crate::report::unmeasured;
use crate::resource::{Amount, Resource};
use crate::time::nanos;

impl<T> Record<T> {
    /// Asserts that the work stayed within a budget, both its soft and its hard limits.
    ///
    /// Two limits are stricter here than in production. Statements that passed through no metered
    /// connection count as queries, because the database executed them. And statements that differ
    /// only in their values count as the same statement, so they are repeated. Likewise a limit
    /// [for one statement](crate::Budget::repeated_queries_for) covers that statement with any
    /// values.
    ///
    /// # Panics
    ///
    /// Panics if a limit was crossed, and prints everything that the work did. Panics as well if
    /// the budget has a limit on a resource that nothing measured: see [not
    /// blind](super#not-blind).
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "budgets are passed by value everywhere")]
    pub fn assert_within(&self, budget: Budget) {
        let account = self.account();
        let limits = budget.limits();
        let named = |resources: &[Resource]| {
            let names = resources.iter().filter(|resource| limits.names(**resource));
            names.map(|resource| resource.name()).collect::<Vec<_>>().join(", ")
        };
        let mut failure = Failure::default();
        let queries = named(&unmeasured::STATEMENTS);
        if !queries.is_empty() {
            failure.extend(blindness(account, &format!("the budget limits {queries}")));
            let allows =
                |resource: &Resource| limits.soft(*resource).min(limits.hard(*resource)) > 0;
            if failure.is_empty()
                && unmeasured::STATEMENTS.iter().filter(|r| limits.names(**r)).all(allows)
            {
                doubts::warn_of_nothing(account, Location::caller());
            }
        }
        let caches = named(&unmeasured::CACHES);
        if !caches.is_empty() && !account.sight.cache_exists {
            failure.push(
                format!(
                    "the budget limits {caches}, but no metered connection to a cache exists in this process"
                ),
                vec![advice::CACHE.to_owned()],
            );
        }
        let memory = named(&unmeasured::MEMORY);
        if !memory.is_empty() && !account.sight.memory {
            failure.push(
                format!(
                    "the budget limits {memory}, but the counting allocator is not installed in this process"
                ),
                vec![advice::ALLOCATOR.to_owned()],
            );
        }
        for &resource in Resource::ALL.iter().filter(|resource| limits.names(**resource)) {
            if resource == Resource::RepeatedQueries {
                repetitions::check(&mut failure, account, limits);
                continue;
            }
            let limit = limits.soft(resource).min(limits.hard(resource));
            match observed(account, resource) {
                Ok(observed) if observed > limit => {
                    failure.push(over(resource, observed, limit), advice::of(account, resource));
                }
                Ok(_) | Err(Unknown::Said) => {}
                Err(Unknown::Not(why)) => {
                    failure.push(format!("the budget limits {resource}, but {why}"), Vec::new());
                }
            }
        }
        for call in &account.external_calls {
            let timeout = limits.external_timeout(Key::of(&call.name));
            let limit = timeout.min(limits.soft(Resource::ExternalTimeout));
            if nanos(call.longest) > limit {
                let over = over(Resource::ExternalTimeout, nanos(call.longest), limit);
                let advice = advice::of(account, Resource::ExternalTimeout);
                failure.push(format!("{over}: call to {:?}", call.name), advice);
            }
        }
        failure.panic_unless_empty(account, "what it did", Location::caller());
    }

    /// Asserts that the work executed exactly this many statements.
    ///
    /// Statements that passed through no metered connection count as well.
    ///
    /// # Panics
    ///
    /// Panics if it did not, and prints everything that the work did. Panics as well if nothing
    /// counted statements: see [not blind](super#not-blind).
    #[track_caller]
    pub fn assert_queries(&self, expected: u64) {
        let account = self.account();
        let mut failure = Failure::default();
        failure.extend(blindness(account, "the test counts queries"));
        let queries = account.queries();
        if expected == 0 {
            doubts::nothing_is_meant(account);
        }
        if queries != expected {
            let phrase = Resource::Queries.phrase(queries == 1);
            let by = match queries.checked_sub(expected) {
                Some(more) => format!("{more} too many"),
                None => format!("{} too few", expected.saturating_sub(queries)),
            };
            let advice = match queries > expected {
                true => advice::of(account, Resource::Queries),
                false => Vec::new(),
            };
            failure.push(format!("{queries} {phrase}, expected {expected}: {by}"), advice);
        }
        failure.panic_unless_empty(account, "what it did", Location::caller());
    }

    /// Asserts that every statement passed through a metered connection, or was observed.
    ///
    /// # Panics
    ///
    /// Panics if some did not, and prints these statements and where they were executed. Panics as
    /// well if the events of sqlx could not be received.
    #[track_caller]
    pub fn assert_no_unmetered(&self) {
        let account = self.account();
        let mut failure = Failure::default();
        match (account.usage.unmetered, account.sight.unseen) {
            (0, Some(unseen)) => {
                failure.push(unseen.why.to_owned(), vec![unseen.remedy.to_owned()]);
            }
            (0, None) => {}
            (n, _) => failure.push(
                format!("{n} {} passed through no metered connection", statements(n)),
                vec![advice::METER.to_owned()],
            ),
        }
        failure.panic_unless_empty(account, "what it did", Location::caller());
    }

    /// Asserts that no external system was called.
    ///
    /// Known are calls marked with [`external`](crate::ExternalExt::external), or made through an
    /// `ExternalLayer`.
    ///
    /// # Panics
    ///
    /// Panics if there was a call, and prints everything that the work did.
    #[track_caller]
    pub fn assert_no_external_calls(&self) {
        let account = self.account();
        let mut failure = Failure::default();
        let calls = account.usage.external_calls;
        if calls > 0 {
            let phrase = Resource::ExternalCalls.phrase(calls == 1);
            let advice = vec!["give the test a double of what it calls".to_owned()];
            failure.push(format!("{calls} {phrase}, expected none"), advice);
        }
        failure.panic_unless_empty(account, "what it did", Location::caller());
    }
}

/// Why an assertion about statements cannot be decided, where that is so; the name of the assertion
/// comes first.
pub(super) fn blindness(account: &Account, who: &str) -> Option<(String, Vec<String>)> {
    let (unmetered, elsewhere) = (account.usage.unmetered, account.elsewhere());
    let took_part = account.usage.queries > 0 || account.usage.transactions > 0;
    let found =
        |why: String, advice: &str| Some((format!("{who}, but {why}"), vec![advice.to_owned()]));
    if !took_part && unmetered > 0 {
        let statements = statements(unmetered);
        let why = format!(
            "no metered pool or client took part in the work, while {unmetered} {statements} ran unmetered"
        );
        return found(why, advice::METER);
    }
    if !account.sight.pool_exists {
        return found("no metered pool or client exists in this process".to_owned(), advice::METER);
    }
    let meanwhile = match elsewhere {
        0 => String::new(),
        n => format!(", while {n} {} ran in other tasks", statements(n)),
    };
    let is_unserved = account.sight.served.is_some_and(|served| served.requests == 0);
    if is_unserved && (!took_part || elsewhere > 0) {
        let none = "no request passed through the layer of the `Recorder`";
        return found(format!("{none}{meanwhile}"), advice::RECORD);
    }
    if elsewhere > 0 {
        // An N+1 in a spawned task fails the assertion even if the work executed statements itself.
        let own = match took_part {
            true => "the work itself may not have executed all",
            false => "the work itself executed none",
        };
        return found(format!("{own}{meanwhile}"), advice::CARRY);
    }
    if let n @ 1.. = account.sight.carried {
        let tasks = message::carried(n);
        let why = match took_part {
            false => format!("it executed none by its end, with {tasks} still running"),
            true => {
                format!("{tasks} {} still running at its end", if n == 1 { "was" } else { "were" })
            }
        };
        return found(why, advice::WAIT);
    }
    match account.sight.unseen.filter(|_| !took_part) {
        Some(unseen) => found(format!("none was counted, and {}", unseen.why), unseen.remedy),
        None => None,
    }
}

fn statements(n: u64) -> &'static str {
    if n == 1 { "statement" } else { "statements" }
}

enum Unknown {
    /// Printed elsewhere, once for all of its kind.
    Said,
    Not(&'static str),
}

/// What the work used of each resource, in the form in which limits are compared.
fn observed(account: &Account, resource: Resource) -> Result<u64, Unknown> {
    let usage = &account.usage;
    Ok(match resource {
        Resource::Queries => account.queries(),
        // Each statement may have a limit of its own.
        Resource::RepeatedQueries => 0,
        Resource::Writes => account.writes(),
        Resource::Rows => usage.rows,
        Resource::Transactions => usage.transactions,
        Resource::QueryTime => nanos(usage.query_time),
        Resource::SlowQuery => nanos(usage.slow_query),
        Resource::ConnectionWait => nanos(usage.connection_wait),
        Resource::CacheCalls => usage.cache_calls,
        Resource::RepeatedCacheCalls => usage.repeated_cache_calls,
        Resource::CacheTime => nanos(usage.cache_time),
        Resource::Memory => usage.memory.ok_or(Unknown::Said)?,
        Resource::Allocated => usage.allocated.ok_or(Unknown::Said)?,
        Resource::Retained => usage.retained.ok_or(Unknown::Said)?,
        Resource::ExternalCalls => usage.external_calls,
        Resource::ExternalTime => nanos(usage.external_time),
        // Each call has its own.
        Resource::ExternalTimeout => 0,
        Resource::TotalTime | Resource::SlowRequest => nanos(usage.total_time),
        Resource::PollTime => nanos(usage.poll_time.unwrap_or_default()),
        Resource::ResponseBytes | Resource::BodyIdle => {
            return Err(Unknown::Not(
                "a measurement does not see the body of a response; let a `BudgetLayer` limit it",
            ));
        }
    })
}

/// "21 queries, limit 20: 1 too many".
pub(super) fn over(resource: Resource, observed: u64, limit: u64) -> String {
    let much = if matches!(resource.amount(0), Amount::Count(_)) { "many" } else { "much" };
    let more = resource.amount(observed.saturating_sub(limit));
    let [observed, limit] = [observed, limit].map(|raw| resource.amount(raw));
    let phrase = resource.phrase(observed.is_one());
    format!("{observed} {phrase}, limit {limit}: {more} too {much}")
}
