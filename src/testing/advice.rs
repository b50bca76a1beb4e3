//! Advice on how to mend what an assertion found: one line for each finding.

use super::record::{Account, Statement};
use crate::resource::Resource;
use crate::violation::Line;
use crate::writes::is_write;

pub(super) const METER: &str = "wrap the pool where it is made, \
                                `request_budget::sqlx::Pool::from(pool)`, or make the client by \
                                `request_budget::mongodb::Client`";
pub(super) const CACHE: &str =
    "wrap the connection where it is made, `request_budget::redis::Connection::new(connection)`";
pub(super) const CARRY: &str = "carry along the tasks that are part of the work, \
                                `request_budget::task::spawn` or `.in_current_budget()`; measure a \
                                server by a `Recorder`; declare what is no part of it: \
                                `testing::unrelated(..)`";
pub(super) const RECORD: &str =
    "put it around the whole service that the client asks, `.layer(recorder.layer())`";
pub(super) const WAIT: &str = "wait in the measured work for the tasks that it carries along";
pub(super) const ALLOCATOR: &str = "install it in the test: `#[global_allocator] \
                                    static ALLOC: CountingAllocator = CountingAllocator::system();`";

/// The highest number of statements that advice names.
const MOST: usize = 3;

/// Advice for work that used too much of this resource.
pub(super) fn of(account: &Account, resource: Resource) -> Vec<String> {
    let slowest = || account.statements.iter().max_by_key(|statement| statement.longest);
    match resource {
        Resource::Queries => queries(account, account.all_statements()),
        Resource::QueryTime | Resource::SlowQuery => {
            let explain = |slow: &Statement| {
                format!("see how the database executes `{}`: EXPLAIN ANALYZE", Line(&slow.text))
            };
            slowest().map(explain).into_iter().collect()
        }
        Resource::Writes => {
            let writes = account.all_statements().filter(|statement| is_write(&statement.text));
            let named = |statement: &Statement| {
                format!(
                    "`{}` changes something: move it out of what only reads",
                    Line(&statement.text)
                )
            };
            writes.take(MOST).map(named).collect()
        }
        Resource::Rows => {
            let each = |statement: &&Statement| statement.rows.checked_div(statement.executions);
            let most = account.statements.iter().max_by_key(each);
            let limit = |most: &Statement| {
                let (text, rows) = (Line(&most.text), most.rows);
                let in_all = if most.executions > 1 { " in all" } else { "" };
                format!("`{text}` gave {rows} rows{in_all}: bound it with a LIMIT, and page")
            };
            most.map(limit).into_iter().collect()
        }
        Resource::ConnectionWait => vec![
            "no connection was free: give the pool more, or hold each for less time (a transaction \
             that is open during other work, an external call)"
                .to_owned(),
        ],
        Resource::Transactions => {
            vec!["put what belongs together into one transaction".to_owned()]
        }
        Resource::CacheCalls | Resource::RepeatedCacheCalls | Resource::CacheTime => {
            caches(account)
        }
        Resource::Memory | Resource::Allocated | Resource::Retained => memory(account),
        Resource::ExternalCalls | Resource::ExternalTime => {
            vec![
                "ask for all at once, call at the same time, or keep what changes rarely"
                    .to_owned(),
            ]
        }
        Resource::ExternalTimeout => {
            vec!["bound each call: `Budget::external_timeout`, and a fallback".to_owned()]
        }
        Resource::PollTime => {
            vec!["move what computes for so long off the executor: `spawn_blocking`".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Advice on statements, some of which are executed repeatedly.
pub(super) fn queries<'a>(
    account: &Account,
    statements: impl Iterator<Item = &'a Statement>,
) -> Vec<String> {
    let mut all: Vec<_> = statements.filter(|statement| statement.repetitions > 1).collect();
    all.sort_by_key(|statement| std::cmp::Reverse(statement.executions));
    if all.is_empty() && account.queries() > 1 {
        return vec![
            "no statement is repeated: join them, or leave out what is not needed here".to_owned(),
        ];
    }
    all.into_iter().take(MOST).map(repeated).collect()
}

/// Advice on a statement that is executed repeatedly.
pub(super) fn repeated(statement: &Statement) -> String {
    let Statement { text, repetitions, .. } = statement;
    let verb = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    let instead = match &*verb {
        "SELECT" | "WITH" => "fetch all at once, by a join or `WHERE .. = ANY($1)`",
        "INSERT" => "insert all rows at once: several after VALUES, or `SELECT .. FROM UNNEST($1)`",
        "UPDATE" | "DELETE" => "change all rows at once: `WHERE .. = ANY($1)`",
        "FIND" | "AGGREGATE" => "fetch all at once, by `$in` or a `$lookup`",
        _ => "do it once for all",
    };
    format!("`{}` was executed {repetitions} times: {instead}", Line(text))
}

fn caches(account: &Account) -> Vec<String> {
    let most = account.cache_calls.iter().max_by_key(|call| call.executions);
    let Some(most) = most.filter(|call| call.executions > 1) else { return Vec::new() };
    vec![format!(
        "`{}` was sent {} times: ask for all keys at once (MGET), or send a pipeline",
        Line(&most.text),
        most.executions
    )]
}

fn memory(account: &Account) -> Vec<String> {
    let rows = account.statements.iter().filter(|s| s.rows > 1).max_by_key(|s| s.rows);
    let stream = match rows {
        Some(most) => format!(
            "work on what `{}` gives row by row, by `fetch`, or bound it with a LIMIT",
            Line(&most.text)
        ),
        None => "work on it piece by piece".to_owned(),
    };
    match account.peak() {
        Some(place) => vec![format!("the most was held at {place}: {stream}")],
        None => vec![stream],
    }
}
