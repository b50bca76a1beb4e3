//! The database of the shop, and one for its queue, which so never waits for a lock of the other:
//! SQLite files in a temporary directory.

use std::path::PathBuf;

use request_budget::sqlx::Pool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};

use crate::Failure;

const SCHEMA: &str = "
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, invoiced INTEGER NOT NULL);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
        INSERT INTO orders SELECT i, 'Customer ' || i, 0 FROM n;";

#[derive(Debug)]
pub(crate) struct Store {
    pool: Pool<Sqlite>,
    queue: SqlitePool,
    directory: Directory,
}

/// A job as the queue has stored it: its status, and how often it was tried.
pub(crate) type Stored = (String, i64);

impl Store {
    pub(crate) async fn create() -> Result<Self, Failure> {
        let directory = Directory::create()?;
        let connect = async |file: &str| {
            let options = SqliteConnectOptions::new()
                .filename(directory.0.join(file))
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Normal);
            SqlitePoolOptions::new().max_connections(8).connect_with(options).await
        };
        let pool = connect("shop.db").await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let queue = connect("queue.db").await?;
        Ok(Self { pool: Pool::from(pool), queue, directory })
    }

    /// What the runner does with its queue is charged to no job.
    pub(crate) fn queue(&self) -> &SqlitePool {
        &self.queue
    }

    pub(crate) fn pool(&self) -> Pool<Sqlite> {
        self.pool.clone()
    }

    /// What the queue says of its jobs in the end, each once.
    pub(crate) async fn results(&self) -> sqlx::Result<Vec<Stored>> {
        sqlx::query_as("SELECT DISTINCT status, attempts FROM Jobs ORDER BY status, attempts")
            .fetch_all(&self.queue)
            .await
    }

    pub(crate) async fn remove(self) {
        self.pool.close().await;
        self.queue.close().await;
        drop(self.directory);
    }
}

/// A directory of this process alone; gone when dropped, after an error as well.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self, Failure> {
        let name = format!("request-budget-worker-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)
            .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing better can be done about a temporary directory that will not go.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
