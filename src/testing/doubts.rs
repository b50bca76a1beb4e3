//! What an assertion that passes may have missed: no reason to fail it, but to warn.

use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

use super::record::Account;
use super::warning;

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

const NOTHING: &str = "the work executed no statement at all, which shows nothing: `.await` what it makes, and give it \
                       data; if none is meant, assert that first: `assert_queries(0)`";

/// Warns of what may have been missed by an assertion that passes at this place.
pub(super) fn warn(account: &Account, caller: &Location<'_>) {
    for doubt in of(account) {
        say(account, &doubt, caller);
    }
}

/// Warns that an upper bound, or the absence of something, was asserted of work that executed nothing.
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
            "{n} {responses} not read to its end: what a body does is part of the work only if it is read in the \
             measured future"
        ));
    }
    if sight.returns_future {
        doubts.push(
            "the work returned a future, which did nothing in it: `.await` it in the measured future"
                .to_owned(),
        );
    }
    doubts
}
