//! What an assertion that passes may have missed: no reason to fail it, but to warn.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::record::Account;
use super::site;
use super::warning;
use crate::meter::recording::Entry;

/// What a record has warned of already. Each of its assertions would otherwise repeat it.
#[derive(Debug, Clone, Default)]
pub(super) struct Warned(Arc<Mutex<Vec<String>>>);

impl Warned {
    fn is_new(&self, warning: &str) -> bool {
        // No access panics midway, so a poisoned list is whole.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !all.iter().any(|known| known == warning);
        if is_new {
            all.push(warning.to_owned());
        }
        is_new
    }
}

const NOTHING: &str = "the work executed no statement at all, which shows nothing: `.await` what \
                       it makes, and give it \
                       data; if none is meant, assert that first: `assert_queries(0)`";

/// Warns of what may have been missed by an assertion that passes at this place.
pub(super) fn warn(account: &Account, caller: &Location<'_>) {
    for doubt in of(account) {
        say(account, &doubt, caller);
    }
}

/// Warns that an upper bound, or the absence of something, was asserted of work that executed
/// nothing.
pub(super) fn warn_of_nothing(account: &Account, caller: &Location<'_>) {
    if account.queries() == 0 && account.usage.transactions == 0 {
        say(account, NOTHING, caller);
    }
}

/// Notes that work is meant to execute nothing.
pub(super) fn nothing_is_meant(account: &Account) {
    account.warned.is_new(NOTHING);
}

fn say(account: &Account, doubt: &str, caller: &Location<'_>) {
    if account.warned.is_new(doubt) {
        warning::emit(&format!("{caller}: {doubt}"));
    }
}

fn of(account: &Account) -> Vec<String> {
    let mut doubts = Vec::new();
    let sight = &account.sight;
    if let Some(unseen) = sight.unseen {
        doubts.push(format!("{}: {}", unseen.why, unseen.remedy));
    }
    if let n @ 1.. = sight.unread {
        let responses = if n == 1 {
            "response with a streamed body was"
        } else {
            "responses with a streamed body were"
        };
        doubts.push(format!(
            "{n} {responses} not read to its end: what a body does is part of the work only if it \
             is read in the measured future"
        ));
    }
    if sight.returns_future {
        doubts.push(
            "the work returned a future, which did nothing in it: `.await` it in the measured future"
                .to_owned(),
        );
    }
    doubts.extend(of_surroundings(account));
    doubts
}

/// What the work seems to have had done for it, uncounted.
fn of_surroundings(account: &Account) -> Vec<String> {
    let Account { surroundings, usage, sight, .. } = account;
    let mut doubts = Vec::new();
    let is_begun = |entry: &&Arc<Entry>| {
        let stack = site::stack(&entry.site);
        !stack.is_test && !stack.is_unreadable
    };
    let mut outside: Vec<_> = surroundings.outside.iter().filter(is_begun).collect();
    let mut earlier: Vec<&Arc<Entry>> = Vec::new();
    let looked_at = surroundings.wakes.iter().map(|woken| &woken.site);
    let mut looked_at = looked_at.chain(surroundings.outside.iter().map(|entry| &entry.site));
    // It concerns the whole program, so it is reported only once.
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    if looked_at.any(|site| site::stack(site).is_unreadable) && !IS_SAID.swap(true, Relaxed) {
        doubts.push(STRIPPED.to_owned());
    }
    let (mut is_joined, mut clients) = (false, Vec::new());
    for woken in &surroundings.wakes {
        let waking = site::waking(&woken.site, woken.from.task.is_some());
        is_joined |= waking.is_task;
        let client = waking.client.or(waking.is_socket.then_some(SOCKET));
        clients.extend(client.filter(|client| !clients.contains(client)));
        if let Some(last) = &woken.after
            && !waking.is_clock
            && !waking.is_socket
        {
            let is_new = match last.task {
                Some(_) => last.task > surroundings.newest.0,
                None => woken.from.thread > surroundings.newest.1,
            };
            let is_inside = || surroundings.inside.iter().any(|e| Arc::ptr_eq(e, &last.entry));
            // Which task has ended is not known where its waiters are woken: one that is older is
            // not waited for.
            let is_of_waker = !waking.is_task && woken.from.task == last.task;
            let list = match is_new {
                // Of these it is decided elsewhere whether they may be part of the work.
                true if is_inside() => continue,
                true if is_of_waker || (waking.is_task && last.task.is_some()) => &mut outside,
                false if is_of_waker => &mut earlier,
                _ => continue,
            };
            if !list.iter().any(|entry| Arc::ptr_eq(entry, &last.entry)) {
                list.push(&last.entry);
            }
        }
    }
    // Those of the same runtime that may be part of the work fail the assertion.
    if let n @ 1.. = outside.len() {
        let statements = statements(n);
        doubts.push(format!(
            "{n} {statements} ran meanwhile outside of the runtime, in no count: carry \
             along what another thread or runtime does for the work, \
             `request_budget::task::carried` or `.in_current_budget()`"
        ));
    }
    if let n @ 1.. = earlier.len() {
        let statements = statements(n);
        doubts.push(format!(
            "{n} {statements} of what was there before the work answered it, in no count: is it an \
             actor, measure it by itself, or carry its messages along"
        ));
    }
    // Plain statements that are seen give back their connections in tasks.
    let plain = usize::try_from(usage.unmetered.saturating_add(usage.observed));
    let n = surroundings.uncarried;
    let is_server = sight.served.is_some();
    if !is_server && n > plain.unwrap_or(usize::MAX) && (is_joined || surroundings.has_more_tasks) {
        let tasks = if n == 1 { "task" } else { "tasks" };
        doubts.push(format!(
            "the work spawned {n} {tasks} that it did not carry along: what plain pools and \
             clients do there is not seen; spawn by `request_budget::task::spawn`, or declare it: \
             `testing::unrelated(..)`"
        ));
    }
    // The client is the test's own where a server is measured; and what sqlx makes events of is
    // seen.
    let is_known = |client: &str| match client {
        "hyper" | SOCKET if sight.served.is_some() => true,
        SOCKET => usage.unmetered.saturating_add(usage.observed) > 0,
        "mongodb" => usage.queries > 0,
        _ => false,
    };
    for client in clients.into_iter().filter(|client| !is_known(client)) {
        let (what, remedy) = match client {
            SOCKET => (SOCKET.to_owned(), MARK),
            "hyper" => ("`hyper`".to_owned(), MARK),
            "mongodb" => {
                ("`mongodb`".to_owned(), "make the client by `request_budget::mongodb::Client`")
            }
            other => (format!("`{other}`"), "count its commands by `request_budget::db::Query`"),
        };
        doubts.push(format!("the work waited for {what}, which nothing measures: {remedy}"));
    }
    doubts
}

const STRIPPED: &str = "who woke the work cannot be told, because the program is stripped of its \
                        symbols: what clients that nobody wrapped, other threads and runtimes, \
                        actors, and plain pools in spawned tasks did for it is not seen; set \
                        `strip = false` in the profile of the tests";
const SOCKET: &str = "a socket";
const MARK: &str =
    "mark the call with `.external(\"name\")`, or put an `ExternalLayer` around the client";

fn statements(n: usize) -> &'static str {
    if n == 1 { "statement" } else { "statements" }
}
