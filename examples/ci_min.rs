//! A test that fails CI, to be copied: this page asks for each author by itself.
//! `cargo run --example ci_min` shows what it says.

use request_budget::{Budget, sqlx::SqlitePool, testing};

async fn page(pool: &SqlitePool) -> sqlx::Result<Vec<String>> {
    let ids: Vec<i64> =
        sqlx::query_scalar("SELECT author FROM posts LIMIT 10").fetch_all(pool).await?;
    let mut names = Vec::new();
    for id in ids {
        let name = sqlx::query_scalar("SELECT name FROM authors WHERE id = $1").bind(id);
        names.push(name.fetch_one(pool).await?); // an N+1: a join would be one query for all
    }
    Ok(names)
}

// In a file of `tests/` this is a `#[tokio::test]`.
pub(crate) async fn a_page_takes_two_queries() {
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let plain = options.connect("sqlite::memory:").await.expect("it needs no server");
    let pool = SqlitePool::from(plain); // the pool, wrapped
    let data = "CREATE TABLE authors AS SELECT column1 AS id, column2 AS name FROM (VALUES (1, 'Ada'), (2, 'Alan'));
                CREATE TABLE posts AS SELECT id AS author FROM authors";
    sqlx::raw_sql(data).execute(&pool).await.expect("a good statement");

    let record = testing::measure(page(&pool)).await;
    record.assert_within(Budget::new().queries(2).rows(100));
    record.assert_no_repeated_statements();
}

#[tokio::main]
async fn main() {
    a_page_takes_two_queries().await;
}
