//! Ways of wiring a test wrongly: each fails an assertion. One test each.

mod beside;
mod plain;

use request_budget::sqlx::Pool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Executor, Sqlite, SqlitePool};

async fn plain_logging(level: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().log_statements(level.parse().unwrap());
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

async fn plain() -> SqlitePool {
    plain_logging("debug").await
}

async fn metered() -> Pool<Sqlite> {
    Pool::from(plain().await)
}

async fn query<'a>(pool: impl Executor<'a, Database = Sqlite>) {
    pool.execute("SELECT 1").await.unwrap();
}
