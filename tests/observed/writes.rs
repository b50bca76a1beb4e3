//! `Budget::writes`: statements that change something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use request_budget::db::Query;
use request_budget::sqlx::Pool;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Limit, Usage, Violation};
use sqlx::SqlitePool;

#[tokio::test]
async fn a_soft_limit_reports_the_statement_that_writes() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reporter = {
        let seen = seen.clone();
        move |violation: &Violation| seen.lock().unwrap().push(violation.to_string())
    };
    let work = async {
        drop(Query::start("SELECT 1"));
        drop(Query::start("WITH a AS (SELECT 1) SELECT * FROM a"));
        drop(Query::start("/* seen */ UPDATE posts SET views = 2"));
        drop(Query::start("/* seen */ UPDATE posts SET views = 2"));
        Usage::current().unwrap()
    };
    let work = work.budgeted("GET /posts", Budget::new().writes(0)).with_reporter(reporter);
    let usage = work.await.unwrap();
    assert_eq!((usage.queries, usage.writes), (4, 2));
    let expected =
        "GET /posts: 1 statement that writes, limit 0: `/* seen */ UPDATE posts SET views = 2`";
    assert_eq!(*seen.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn what_a_hard_limit_forbids_does_not_reach_the_database() {
    let plain = SqlitePool::connect("sqlite::memory:").await.unwrap();
    sqlx::query("CREATE TABLE posts (id INTEGER)").execute(&plain).await.unwrap();
    let pool = Pool::from(plain.clone());
    let work = async {
        let insert = "INSERT INTO posts VALUES (1)";
        sqlx::query(insert).execute(&pool).await.unwrap();
        sqlx::query("SELECT id FROM posts").fetch_all(&pool).await.unwrap();
        sqlx::query(insert).execute(&pool).await.unwrap_err();
        let usage = Usage::current().unwrap();
        assert_eq!((usage.queries, usage.repeated_queries, usage.writes), (2, 1, 1));
    };
    let budget = Budget::new().writes(Limit::hard(1));
    let cut = work.budgeted("request", budget).await.unwrap_err();
    assert!(cut.to_string().contains("2 statements that write, limit 1"), "{cut}");
    assert!(cut.to_string().contains("`INSERT INTO posts VALUES (1)`"), "{cut}");
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM posts").fetch_one(&plain).await.unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn what_an_outer_limit_refuses_is_counted_nowhere() {
    let inner = async {
        drop(Query::start("DELETE FROM a").unwrap_err());
        let usage = Usage::current().unwrap();
        assert_eq!((usage.queries, usage.writes, usage.repeated_queries), (0, 0, 0));
    };
    let inner = inner.budgeted("inner", Budget::new().writes(Limit::hard(5)));
    let outer = async { drop(inner.await) };
    let budget = Budget::new().writes(Limit::hard(0));
    let cut = outer.budgeted("outer", budget).await.unwrap_err();
    assert!(cut.to_string().contains("limit 0: `DELETE FROM a`"), "{cut}");
}

#[tokio::test]
async fn a_failed_assertion_names_what_writes() {
    let record = measure(async {
        drop(Query::start("SELECT 1"));
        drop(Query::start("DELETE FROM a"));
    })
    .await;
    record.assert_within(Budget::new().writes(1));
    let assertion = || record.assert_within(Budget::new().writes(0));
    let panic = catch_unwind(AssertUnwindSafe(assertion)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("1 statement that writes, limit 0: 1 too many"), "{text}");
    assert!(text.contains("`DELETE FROM a` changes something"), "{text}");
}
