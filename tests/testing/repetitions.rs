//! A statement that is right to be repeated is allowed, and no other with it.

use request_budget::db::Query;
use request_budget::sqlx::Pool;
use request_budget::testing::{Record, measure};
use request_budget::{Budget, Limit};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Sqlite, SqlitePool};

use crate::failure;

const RANDOM: &str = "SELECT random()";
const NAME: &str = "SELECT name FROM sqlite_master WHERE rowid = $1";

async fn pool() -> Pool<Sqlite> {
    let plain = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await;
    Pool::from(plain.unwrap())
}

/// Two executions of a statement that may be repeated, and five of an N+1.
async fn record() -> Record {
    let pool = pool().await;
    let work = async {
        for _ in 0..2 {
            sqlx::query(RANDOM).execute(&pool).await.unwrap();
        }
        for n in 0..5 {
            sqlx::query(NAME).bind(n).execute(&pool).await.unwrap();
        }
    };
    measure(work).await
}

/// The findings, and the advice.
fn said(said: &str) -> Vec<&str> {
    let is_said = |line: &&str| !line.is_empty();
    let findings = said.lines().take_while(is_said);
    findings.chain(said.lines().skip_while(|line| *line != "advice").skip(1)).collect()
}

#[tokio::test]
async fn one_repetition_is_allowed_while_another_still_fails() {
    let record = record().await;
    let both = failure(|| record.assert_no_repeated_statements());
    assert_eq!(said(&both).len(), 4, "a finding and advice for each");
    let other = failure(|| record.assert_no_repeated_statements_except(&[RANDOM]));
    let name = "`SELECT name FROM sqlite_master WHERE rowid = ?` was executed 5 times";
    let advice = format!("  * {name}: fetch all at once, by a join or `WHERE .. = ANY($1)`");
    assert_eq!(said(&other), [name, &advice]);
    // A text as the program gives it, with other values, in other white space, or as it is printed.
    for text in [
        NAME,
        "SELECT name FROM sqlite_master WHERE rowid = 7",
        "SELECT name\n  FROM sqlite_master\n  WHERE rowid = $2 -- one",
        "SELECT name FROM sqlite_master WHERE rowid = ?",
    ] {
        record.assert_no_repeated_statements_except(&[text, RANDOM]);
        let other = failure(|| record.assert_no_repeated_statements_except(&[text]));
        assert_eq!(said(&other)[0], "`SELECT random()` was executed 2 times");
    }
    for no_other in ["SELECT name FROM sqlite_master", "", "SELECT 1"] {
        failure(|| record.assert_no_repeated_statements_except(&[no_other, RANDOM]));
    }
}

#[tokio::test]
async fn one_statement_has_a_limit_of_its_own_in_a_budget() {
    let record = record().await;
    let one = || Budget::new().repeated_queries(1);
    let both = failure(|| record.assert_within(one()));
    assert_eq!(said(&both)[0], "5 executions of the same statement, limit 1: 4 too many");
    let advised = said(&both).into_iter().filter(|line| line.contains("was executed"));
    assert_eq!(advised.count(), 2, "{both}");
    record.assert_within(one().repeated_queries_for(RANDOM, 2).repeated_queries_for(NAME, 5));
    record
        .assert_within(one().repeated_queries_for(RANDOM, u64::MAX).repeated_queries_for(NAME, 5));
    record.assert_within(Budget::new().repeated_queries_for(RANDOM, 2));

    let name = "`SELECT name FROM sqlite_master WHERE rowid = ?`";
    let advice = format!(
        "  * {name} was executed 5 times: fetch all at once, by a join or `WHERE .. = ANY($1)`"
    );
    let of_others = failure(|| record.assert_within(one().repeated_queries_for(RANDOM, 2)));
    assert_eq!(
        said(&of_others),
        ["5 executions of the same statement, limit 1: 4 too many", &advice]
    );
    let own = one().repeated_queries_for(RANDOM, 2).repeated_queries_for(NAME, Limit::hard(4));
    let own = failure(|| record.assert_within(own));
    let finding = format!("5 executions of the same statement, limit 4: 1 too many: {name}");
    assert_eq!(said(&own), [&*finding, &advice]);
    // A stricter one than that of all others.
    let strict = Budget::new().repeated_queries(5).repeated_queries_for(RANDOM, 1);
    let strict = failure(|| record.assert_within(strict));
    let finding = "2 executions of the same statement, limit 1: 1 too many: `SELECT random()`";
    assert_eq!(said(&strict)[0], finding);
}

#[tokio::test]
async fn what_is_no_sql_is_allowed_by_its_text() {
    let shapes = ["find posts {author: ?}", "GET user:*"];
    let record = measure(async {
        for shape in shapes.into_iter().chain(shapes) {
            drop(Query::start(shape));
        }
    });
    let record = record.await;
    record.assert_no_repeated_statements_except(&shapes);
    failure(|| record.assert_no_repeated_statements_except(&shapes[..1]));
    failure(|| record.assert_no_repeated_statements_except(&shapes[1..]));
}

#[tokio::test]
async fn what_is_allowed_makes_no_test_blind() {
    let plain = SqlitePool::connect("sqlite::memory:").await.unwrap();
    let record = measure(async {
        sqlx::query(RANDOM).execute(&plain).await.unwrap();
    });
    let record = record.await;
    failure(|| record.assert_no_repeated_statements_except(&[RANDOM]));
    failure(|| record.assert_within(Budget::new().repeated_queries_for(RANDOM, 2)));
}

/// Databases in memory of their own, which are told apart by their names.
async fn shards() -> Vec<Pool<Sqlite>> {
    let mut shards = Vec::new();
    for n in 0..4 {
        let url = format!("sqlite:file:repetitions-{n}?mode=memory&cache=private");
        shards.push(Pool::from(SqlitePool::connect(&url).await.unwrap()));
    }
    shards
}

#[tokio::test]
async fn the_same_text_on_several_databases_is_no_repetition() {
    let shards = shards().await;
    let ask = async || {
        for shard in &shards {
            sqlx::query("SELECT count(*) FROM sqlite_master").fetch_one(shard).await.unwrap();
        }
    };
    let record = measure(ask()).await;
    assert_eq!((record.usage().queries, record.usage().repeated_queries), (4, 1));
    record.assert_no_repeated_statements();
    record.assert_within(Budget::new().queries(4).repeated_queries(1));

    let twice = measure(async {
        ask().await;
        ask().await;
    });
    let twice = twice.await;
    assert_eq!((twice.usage().queries, twice.usage().repeated_queries), (8, 2));
    let said = failure(|| twice.assert_no_repeated_statements());
    assert!(
        said.starts_with("`SELECT count(*) FROM sqlite_master` was executed 2 times\n"),
        "{said}"
    );
}

#[tokio::test]
async fn statements_that_differ_in_null_default_or_a_sign_are_one() {
    let pool = pool().await;
    sqlx::query("CREATE TABLE t (a INT, b INT)").execute(&pool).await.unwrap();
    for (statements, text) in [
        (
            ["INSERT INTO t VALUES (1, NULL), (2, 3)", "INSERT INTO t VALUES (4, 5), (6, NULL)"],
            "INSERT INTO t VALUES (?, ?)",
        ),
        (
            ["SELECT a FROM t WHERE b = -1", "SELECT a FROM t WHERE b = 1"],
            "SELECT a FROM t WHERE b = ?",
        ),
    ] {
        let record = measure(async {
            for statement in statements {
                sqlx::query(statement).execute(&pool).await.unwrap();
            }
        });
        let record = record.await;
        let said = failure(|| record.assert_no_repeated_statements());
        assert!(said.starts_with(&format!("`{text}` was executed 2 times\n")), "{said}");
        record.assert_no_repeated_statements_except(&[statements[0]]);
    }
}
