//! Statements on a real SQLite, counted by us and, in another way, by a witness.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod account;
mod cuts;
mod executors;
mod insistent;
mod limits;
mod macros;
mod program;
mod repetitions;
mod retries;
mod statement;
mod time;
mod witness;

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use request_budget::db::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Cut, Limit, Usage};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};
use sqlx::{Connection as _, Executor, Sqlite};
use tokio::runtime::Builder;
use tracing::Instrument;

use crate::account::{Audit, Ledger};
use crate::program::{Step, plain_programs, programs};
use crate::witness::{Texts, Witness};

const CONNECTIONS: u32 = 3;

/// How many rows there are at most; more than the driver buffers.
const NUMBERS: usize = 120;

/// A pool of connections, all made and idle.
///
/// Each has a database of its own in memory, so that no statement meets the lock of another one and
/// what fails is what is meant to.
async fn pool() -> Pool<Sqlite> {
    // A connection may be replaced in the middle of a program, for the pool closes one where a
    // future that acquires it is dropped. What fills the new one is none of the program's.
    let elsewhere = tracing::info_span!(parent: None, "fill");
    let options = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(CONNECTIONS)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |connection, _| {
            Box::pin(fill(connection).instrument(elsewhere.clone()))
        });
    let pool = options.connect_with(SqliteConnectOptions::new()).await.unwrap().into();
    settle(&pool).await;
    pool
}

async fn fill(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    connection.execute("CREATE TABLE numbers (i INTEGER PRIMARY KEY)").await?;
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)").await?;
    connection.execute("INSERT INTO items VALUES (1, 'first')").await?;
    let numbers = "INSERT INTO numbers WITH RECURSIVE n (i) AS \
                   (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT i FROM n";
    connection.execute(sqlx::query(numbers).bind(NUMBERS as i64)).await?;
    Ok(())
}

/// Waits until every connection is done with all that it was sent, so that the witness has seen it.
async fn settle(pool: &Pool<Sqlite>) {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = pool.unmetered().acquire().await.unwrap();
        // It does what it is sent in order, also what nobody waits for any more.
        connection.ping().await.unwrap();
        all.push(connection);
    }
    for mut connection in all {
        // As by drop, but awaited: afterwards all are idle.
        connection.return_to_pool().await;
    }
}

/// Whether the statement was not sent because of a hard limit.
fn is_refusal(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Configuration(inner) if inner.is::<Cut>())
}

/// Runs this as a unit of work, and gives its usage once it has ended.
async fn usage_of(work: impl Future<Output = ()>) -> Usage {
    let ledger = Ledger::default();
    work.budgeted("test", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    let [record] = &ledger.records()[..] else { panic!("one report") };
    record.usage.clone()
}

/// The same, and what SQLite executed meanwhile.
async fn measure(pool: &Pool<Sqlite>, work: impl Future<Output = ()>) -> (Usage, Texts) {
    let witness = Witness::new();
    let usage = usage_of(work).instrument(witness.span()).await;
    settle(pool).await;
    (usage, witness.texts())
}

/// Runs a test on so many random values, and fails with the smallest that fails.
fn check<S: Strategy>(
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(strategy, test) {
        panic!("{failure}");
    }
}

#[test]
fn programs_on_one_thread_count_what_sqlite_executes() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let pool = runtime.block_on(pool());
    let executed = Cell::new(0);
    check(600, &programs(), |program| {
        let audit = Audit::default();
        runtime.block_on(async {
            program::run(&program, &pool, Budget::new(), &audit).await.unwrap();
            settle(&pool).await;
        });
        executed.set(executed.get() + audit.executed());
        audit.check(None)
    });
    assert!(executed.get() > 600, "nothing much was executed: {}", executed.get());
}

#[test]
fn programs_at_once_on_several_threads_count_what_sqlite_executes() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let pool = runtime.block_on(pool());
    let executed = Cell::new(0);
    check(400, &vec(programs(), 1..4), |programs| {
        let audit = Audit::default();
        let run = |program: Vec<Step>| {
            let (pool, audit) = (pool.clone(), audit.clone());
            runtime.spawn(async move {
                program::run(&program, &pool, Budget::new(), &audit).await.unwrap();
            })
        };
        let running: Vec<_> = programs.into_iter().map(run).collect();
        runtime.block_on(async {
            for program in running {
                program.await.unwrap();
            }
            settle(&pool).await;
        });
        executed.set(executed.get() + audit.executed());
        audit.check(None)
    });
    assert!(executed.get() > 400, "nothing much was executed: {}", executed.get());
}

#[test]
fn programs_with_a_hard_limit_execute_what_it_allows_and_no_more() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let pool = runtime.block_on(pool());
    let cuts = Cell::new(0);
    check(300, &(plain_programs(), 0..8_u64), |(program, limit)| {
        let (free, limited) = (Audit::default(), Audit::default());
        let result = runtime.block_on(async {
            program::run(&program, &pool, Budget::new(), &free).await.unwrap();
            let budget = Budget::new().queries(Limit::hard(limit));
            let result = program::run(&program, &pool, budget, &limited).await;
            settle(&pool).await;
            result
        });
        let needed = free.executed();
        prop_assert_eq!(limited.executed(), needed.min(limit));
        prop_assert_eq!(result.is_err(), needed > limit);
        cuts.set(cuts.get() + u32::from(result.is_err()));
        free.check(None)?;
        limited.check(Some(limit))
    });
    assert!((1..300).contains(&cuts.get()), "{} of 300 were cut", cuts.get());
}
