//! What a limit does to statements; the witness tells what SQLite was sent.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use request_budget::db::Query;
use request_budget::report::Outcome;
use request_budget::resource::Amount;
use request_budget::{Budget, BudgetExt, Cause, Cut, Limit, Resource, Severity, Usage, Violation};
use sqlx::Executor;
use tracing::Instrument;

use crate::account::Ledger;
use crate::insistent::insistent;
use crate::witness::{Witness, unmeasured};
use crate::{is_refusal, pool, settle, usage_of};

/// The violation in the error of a statement that was not sent.
fn refusal(error: sqlx::Error) -> Violation {
    let sqlx::Error::Configuration(inner) = error else {
        panic!("not of the kind that is promised: {error}")
    };
    inner.downcast::<Cut>().expect("the reason is the cut").into_violation()
}

#[tokio::test]
async fn a_statement_past_a_hard_limit_is_not_sent_and_the_work_is_cut() {
    let pool = pool().await;
    let (witness, ledger) = (Witness::new(), Ledger::default());
    let errors = Mutex::new(Vec::new());
    let work = async {
        for _ in 0..2 {
            sqlx::query("SELECT 1").execute(&pool).await.unwrap();
        }
        let third = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        errors.lock().unwrap().push(refusal(third));
    };
    let work = insistent(work);
    let budget = Budget::new().queries(Limit::hard(2));
    let work = work.budgeted("test", budget).with_reporter(ledger.clone());
    let cut = work.instrument(witness.span()).await.unwrap_err();

    settle(&pool).await;
    assert_eq!(witness.count(), 2);
    let violation = cut.violation();
    assert_eq!((violation.resource, violation.severity), (Resource::Queries, Severity::Hard));
    assert_eq!((violation.observed, violation.limit), (Amount::Count(3), Amount::Count(2)));
    let Some(Cause::Statement { text, executions, .. }) = &violation.cause else {
        panic!("not the statement: {violation}")
    };
    assert_eq!((&**text, *executions), ("SELECT 1", 2));
    assert_eq!(errors.into_inner().unwrap(), std::slice::from_ref(violation));
    assert!(cut.to_string().starts_with("test was cut: 3 queries, limit 2: `SELECT 1`"), "{cut}");
    let [record] = &ledger.records()[..] else { panic!("one report") };
    assert_eq!((record.usage.queries, record.outcome), (2, Outcome::Cut));

    // Nothing is left behind: the next work finds all connections.
    let next = async { sqlx::query("SELECT 1").execute(&pool).await.map(|_| Usage::current()) };
    let usage = next.budgeted("next", Budget::new()).await.unwrap().unwrap();
    assert_eq!(usage.unwrap().queries, 1);
}

#[tokio::test]
async fn after_a_refusal_nothing_is_sent_in_any_way() {
    let pool = pool().await;
    let witness = Witness::new();
    let work = async {
        let mut connection = pool.acquire().await.unwrap();
        let two = "SELECT 1; SELECT 2";
        let refused = |error| assert_eq!(refusal(error).resource, Resource::Queries);
        let query = || sqlx::query("SELECT 1");
        refused(connection.execute(query()).await.unwrap_err());
        refused(connection.execute(two).await.unwrap_err());
        refused(connection.execute_many(two).try_collect::<Vec<_>>().await.unwrap_err());
        refused(connection.fetch_one(query()).await.unwrap_err());
        refused(connection.fetch_optional(query()).await.unwrap_err());
        refused(connection.fetch_all(query()).await.unwrap_err());
        refused(connection.fetch(query()).try_collect::<Vec<_>>().await.unwrap_err());
        refused(connection.fetch_many(query()).try_collect::<Vec<_>>().await.unwrap_err());
        refused(connection.begin().await.unwrap_err());
        let nothing_open = connection.unmetered().execute("COMMIT").await.unwrap_err();
        assert!(nothing_open.to_string().contains("no transaction is active"), "{nothing_open}");
    };
    let budget = Budget::new().queries(Limit::hard(0));
    let cut =
        insistent(work).budgeted("test", budget).instrument(witness.span()).await.unwrap_err();
    assert_eq!(cut.violation().observed, Amount::Count(1));
    settle(&pool).await;
    assert_eq!(witness.texts().keys().collect::<Vec<_>>(), ["COMMIT"]);
}

#[tokio::test]
async fn a_hard_limit_on_repetitions_refuses_only_what_repeats() {
    let pool = pool().await;
    let witness = Witness::new();
    let work = async {
        for id in 0..5 {
            sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {id}"))).execute(&pool).await?;
        }
        for id in 0..5 {
            sqlx::query("SELECT $1").bind(id).execute(&pool).await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    let budget = Budget::new().repeated_queries(Limit::hard(3));
    let cut = work.budgeted("test", budget).instrument(witness.span()).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::RepeatedQueries);
    assert_eq!(cut.violation().observed, Amount::Count(4));
    settle(&pool).await;
    assert_eq!(witness.count(), 5 + 3);
    assert_eq!(witness.texts()["SELECT $1"], 3);
}

#[tokio::test]
async fn a_transaction_past_a_hard_limit_does_not_begin() {
    let pool = pool().await;
    let work = async {
        let mut first = pool.begin().await?;
        first.execute("UPDATE items SET name = 'by the first'").await?;
        first.commit().await?;
        pool.begin().await.map(drop)
    };
    let budget = Budget::new().transactions(Limit::hard(1));
    let cut = work.budgeted("test", budget).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::Transactions);
    assert_eq!(cut.violation().observed, Amount::Count(2));
    settle(&pool).await;
    for mut connection in [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()] {
        connection.begin_with("BEGIN").await.expect("none of them is inside a transaction");
    }
}

#[tokio::test]
async fn a_transaction_that_is_cut_is_rolled_back() {
    let pool = pool().await;
    let mut connection = pool.acquire().await.unwrap();
    let work = async {
        let mut transaction = connection.begin().await?;
        transaction.execute("UPDATE items SET name = 'changed'").await?;
        transaction.execute("UPDATE items SET name = 'changed again'").await?;
        transaction.commit().await
    };
    let budget = Budget::new().queries(Limit::hard(1));
    let cut = work.budgeted("test", budget).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::Queries);
    let name: String =
        sqlx::query_scalar("SELECT name FROM items").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(name, "first");
}

#[tokio::test]
async fn what_the_outer_work_refuses_the_inner_one_has_not_counted() {
    let pool = pool().await;
    let ledger = Ledger::default();
    let inner = async {
        pool.begin().await.unwrap().commit().await.unwrap();
        assert!(is_refusal(&pool.begin().await.unwrap_err()));
        for _ in 0..3 {
            let refused = pool.execute("SELECT 1").await.unwrap_err();
            assert_eq!(refusal(refused).work, "outer");
        }
    };
    // With a limit of its own it counts repetitions before they are sent.
    let inner = inner.budgeted("inner", Budget::new().repeated_queries(Limit::hard(9)));
    let outer = async {
        pool.execute("SELECT 1").await.unwrap();
        inner.with_reporter(ledger.clone()).await
    };
    let budget = Budget::new().queries(Limit::hard(1)).transactions(Limit::hard(1));
    outer.budgeted("outer", budget).await.unwrap_err();
    let [record] = &ledger.records()[..] else { panic!("one report") };
    assert_eq!((record.usage.queries, record.usage.repeated_queries), (0, 0));
    assert_eq!((record.usage.transactions, record.statements.len()), (1, 0));
}

#[tokio::test]
async fn a_soft_limit_is_reported_once_and_refuses_nothing() {
    let pool = pool().await;
    let violations = Arc::new(Mutex::new(Vec::new()));
    let reporter = {
        let violations = Arc::clone(&violations);
        move |violation: &Violation| violations.lock().unwrap().push(violation.clone())
    };
    let work = async {
        for _ in 0..10 {
            pool.fetch_all("SELECT i FROM numbers WHERE i <= 2").await.unwrap();
        }
        drop(pool.begin().await.unwrap());
        drop(pool.begin().await.unwrap());
    };
    let budget = Budget::new().queries(4).repeated_queries(3).rows(5).transactions(1);
    let witness = Witness::new();
    let work = work.budgeted("test", budget).with_reporter(reporter);
    work.instrument(witness.span()).await.unwrap();
    settle(&pool).await;
    assert_eq!(witness.count(), 10);
    let violations = violations.lock().unwrap();
    let observed: Vec<_> = violations.iter().map(|v| (v.resource, v.observed)).collect();
    assert_eq!(
        observed,
        [
            (Resource::Rows, Amount::Count(6)),
            (Resource::RepeatedQueries, Amount::Count(4)),
            (Resource::Queries, Amount::Count(5)),
            (Resource::Transactions, Amount::Count(2)),
        ]
    );
    assert!(violations.iter().all(|violation| violation.severity == Severity::Soft));
    assert!(violations.iter().all(|violation| violation.place.as_deref() == Some("watched")));
}

#[tokio::test]
async fn threads_of_one_work_do_not_pass_a_hard_limit_together() {
    const THREADS: usize = 4;
    for round in 0..400 {
        let sent = AtomicU64::new(0);
        let work = async {
            let start = Barrier::new(THREADS);
            let child = async || {
                start.wait();
                while Query::start("GET user:*").is_ok() {
                    sent.fetch_add(1, Relaxed);
                }
            };
            let children: Vec<_> = (0..THREADS).map(|_| child().in_current_budget()).collect();
            std::thread::scope(|threads| {
                for child in children {
                    threads.spawn(|| child.now_or_never().expect("it waits for nothing"));
                }
            });
        };
        let limit = Limit::hard(50);
        let budget = match round % 2 {
            0 => Budget::new().queries(limit),
            _ => Budget::new().repeated_queries(limit),
        };
        let ledger = Ledger::default();
        work.budgeted("test", budget).with_reporter(ledger.clone()).await.unwrap_err();
        let usage = &ledger.records()[0].usage;
        assert_eq!((usage.queries, usage.repeated_queries), (50, 50));
        assert_eq!(sent.into_inner(), 50);
    }
}

#[tokio::test]
async fn a_process_with_a_pool_is_not_told_that_it_measures_no_queries() {
    let pool = pool().await;
    let budget = Budget::new().queries(1).repeated_queries(1).rows(1).transactions(1);
    async { pool.execute("SELECT 1").await.unwrap() }.budgeted("test", budget).await.unwrap();
    async {}.budgeted("no statement", Budget::new().queries(1)).await.unwrap();
    assert_eq!(unmeasured(), [""; 0]);
    // The very same look at the events does see what is said.
    async {}.budgeted("memory", Budget::new().memory(1)).await.unwrap();
    assert_eq!(unmeasured(), ["memory"]);
}

#[tokio::test]
async fn a_batch_that_crosses_a_hard_limit_is_refused_its_answer() {
    let pool = pool().await;
    let work = async {
        let batch = "SELECT 1; SELECT 2; SELECT 3; SELECT 4; SELECT 5";
        sqlx::raw_sql(batch).execute(&pool).await.map(drop)
    };
    let budget = Budget::new().queries(Limit::hard(2));
    let cut = work.budgeted("batch", budget).await.unwrap_err();
    assert!(cut.to_string().starts_with("batch was cut: 3 queries, limit 2"), "{cut}");
}

#[tokio::test]
async fn what_a_trigger_executes_is_part_of_its_statement() {
    let pool = pool().await;
    let make = "CREATE TABLE posts (n INTEGER); CREATE TABLE log (n INTEGER); \
                CREATE TRIGGER logs AFTER INSERT ON posts BEGIN \
                INSERT INTO log VALUES (new.n); INSERT INTO log VALUES (new.n); END";
    // Each connection has a database of its own.
    let mut connection = pool.acquire().await.unwrap();
    connection.unmetered().execute(make).await.unwrap();
    let usage = usage_of(async {
        sqlx::query("INSERT INTO posts VALUES (1)").execute(&mut *connection).await.unwrap();
    });
    let usage = usage.await;
    assert_eq!((usage.queries, usage.writes), (1, 1));
    let logged = sqlx::query("SELECT n FROM log").fetch_all(&mut *connection).await.unwrap();
    assert_eq!(logged.len(), 2);
}

#[tokio::test]
async fn rows_of_a_fetch_that_fails_are_nobodys() {
    let pool = pool().await;
    let usage = usage_of(async {
        // The smallest number has no absolute value.
        let fifth = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) \
                     SELECT abs(-9223372036854775808 + 5 - i) FROM n";
        let rows = sqlx::query(fifth).fetch_all(&pool).await;
        rows.map(drop).unwrap_err();
        assert_eq!(sqlx::query("SELECT 1 UNION SELECT 2").fetch_all(&pool).await.unwrap().len(), 2);
    });
    let usage = usage.await;
    assert_eq!((usage.queries, usage.rows), (2, 2));
}

#[tokio::test]
async fn a_beginning_that_cannot_be_inside_another_is_not_counted() {
    let pool = pool().await;
    let usage = usage_of(async {
        let mut transaction = pool.begin().await.unwrap();
        let inner = transaction.begin_with("BEGIN IMMEDIATE").await;
        assert!(matches!(inner.unwrap_err(), sqlx::Error::InvalidSavePointStatement));
        transaction.commit().await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        connection.begin_with("BEGIN IMMEDIATE").await.unwrap().rollback().await.unwrap();
    });
    assert_eq!(usage.await.transactions, 2);
}

#[tokio::test]
async fn a_wait_for_a_connection_is_the_cause_of_a_cut() {
    let pool = pool().await;
    let most = pool.options().get_max_connections();
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(pool.acquire().await.unwrap());
    }
    let work = async { drop(pool.acquire().await) };
    let limit = Duration::from_millis(50);
    let cut = work.budgeted("test", Budget::new().total_time(limit)).await.unwrap_err();
    let message = cut.violation().to_string();
    let of_pool = "limit 50ms: waiting for a connection of sqlite::memory: for ";
    assert!(message.contains(of_pool), "{message}");
    assert!(cut.violation().cause.as_ref().unwrap().waiting().unwrap() >= limit / 2, "{message}");
}
