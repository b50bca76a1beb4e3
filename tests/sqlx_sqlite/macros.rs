//! The macros of sqlx: checked queries, and tests that are handed a pool.

use request_budget::db::sqlx::Pool;
use sqlx::SqlitePool;

use crate::usage_of;

#[sqlx::test(migrations = false)]
async fn a_pool_that_sqlx_hands_to_a_test_is_counted_once_wrapped(pool: SqlitePool) {
    let pool = Pool::from(pool);
    let work = async {
        // Checked by the compiler against the data in `.sqlx`.
        let sum = sqlx::query!("SELECT 40 + 2 AS 'sum!: i64'").fetch_one(&pool).await.unwrap();
        assert_eq!(sum.sum, 42);
        let mut transaction = pool.begin().await.unwrap();
        let seven = sqlx::query_scalar!("SELECT 7 AS 'seven!: i64'").fetch_all(&mut *transaction);
        assert_eq!(seven.await.unwrap(), [7]);
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.queries, usage.rows, usage.transactions), (2, 2, 1));
}
