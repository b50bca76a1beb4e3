//! SeaORM, whose callback and whose events report the same statements; and what
//! `cargo run --example orm` prints.

#[path = "../../examples/orm/blog.rs"]
mod blog;

use futures_util::TryStreamExt;
use request_budget::db::executed;
use request_budget::{Budget, BudgetExt, Usage};
use sea_orm::{
    ConnectionTrait, DbBackend, SqlxSqliteConnector, Statement, StreamTrait, TransactionTrait,
};

use crate::events::{plain_pool, settle};

fn select(text: &str) -> Statement {
    Statement::from_string(DbBackend::Sqlite, text)
}

#[tokio::test]
async fn statements_are_counted_once_with_a_callback_and_without() {
    for has_callback in [false, true] {
        let pool = plain_pool().await;
        let mut db = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.clone());
        if has_callback {
            // It does not know the rows.
            db.set_metric_callback(|info| executed(&info.statement.sql, info.elapsed, 0));
        }
        let work = async {
            for _ in 0..3 {
                let one = db.query_one_raw(select("SELECT 1 AS one, 2 AS two")).await.unwrap();
                assert!(one.is_some());
            }
            let transaction = db.begin().await.unwrap();
            let create = "CREATE TABLE posts (id INTEGER PRIMARY KEY)";
            transaction.execute_raw(select(create)).await.unwrap();
            let two = select("SELECT 1 UNION SELECT 2");
            assert_eq!(transaction.query_all_raw(two.clone()).await.unwrap().len(), 2);
            let rows: Vec<_> =
                transaction.stream_raw(two).await.unwrap().try_collect().await.unwrap();
            assert_eq!(rows.len(), 2);
            transaction.commit().await.unwrap();
            // The callback is not called for this one.
            db.execute_unprepared("SELECT 5").await.unwrap();
            db.execute_raw(select("nonsense of no database")).await.unwrap_err();
            settle(&pool).await;
            Usage::current().unwrap()
        };
        let usage = work.budgeted("work", Budget::new()).await.unwrap();
        assert_eq!((usage.queries, usage.observed, usage.unmetered), (8, 8, 0), "{usage:?}");
        assert_eq!((usage.repeated_queries, usage.writes), (3, 1), "{usage:?}");
        // One of them of `SELECT 5`, which nobody takes.
        assert_eq!(usage.rows, 8, "{usage:?}");
    }
}

#[tokio::test]
async fn the_example_shows_the_text_and_the_place_of_what_is_repeated() {
    // Its own `main` installs the layer, as this does.
    drop(plain_pool().await);
    let db = blog::open().await.expect("opens");
    let text = blog::compare(&db).await.expect("no error of the database");
    let (before, after) = text.split_once("after: ").expect("both");
    assert!(before.starts_with("before: 21 queries (40 rows, "), "{text}");
    assert!(before.contains("  over: GET /posts: 6 queries, limit 5: "), "{text}");
    assert!(after.starts_with("1 query (20 rows, ") && !after.contains("over:"), "{text}");
    let line = before.lines().find(|line| line.starts_with("  20 x")).expect("is shown");
    let code = include_str!("../../examples/orm/blog.rs").lines();
    let place = code.enumerate().find(|(_, line)| line.contains("find_by_id(post.author)"));
    let place = place.map(|(index, _)| index + 1).expect("is there");
    assert!(line.contains(&format!("examples/orm/blog.rs:{place}: SELECT")), "{text}");
    assert!(line.contains(r#"FROM "authors" WHERE "authors"."id" = ?"#), "{text}");
}
