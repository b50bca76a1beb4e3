//! The database: a SQLite file in a temporary directory, made and filled at the start.

use std::path::PathBuf;

use request_budget::sqlx::Pool;
use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::Failure;

const SCHEMA: &str = "
    CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE posts (
        id INTEGER PRIMARY KEY,
        author_id INTEGER NOT NULL REFERENCES authors,
        title TEXT NOT NULL
    );
    CREATE TABLE comments (
        id INTEGER PRIMARY KEY,
        post_id INTEGER NOT NULL REFERENCES posts,
        author_id INTEGER NOT NULL REFERENCES authors,
        body TEXT NOT NULL,
        words INTEGER
    );
    CREATE INDEX comments_of_post ON comments (post_id);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, invoiced INTEGER NOT NULL);
    CREATE TABLE order_items (
        order_id INTEGER NOT NULL REFERENCES orders,
        post_id INTEGER NOT NULL REFERENCES posts,
        copies INTEGER NOT NULL
    );

    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
        INSERT INTO authors SELECT i, 'Author ' || i FROM n;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
        INSERT INTO posts SELECT i, 1 + i % 50, 'Post number ' || i FROM n;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
        INSERT INTO comments
        SELECT i, 1 + i % 500, 1 + i % 50, printf('Comment %d. %.150c', i, 'x'), NULL FROM n;
    INSERT INTO orders VALUES (1, 'Ada', 0), (2, 'Grace', 0), (3, 'Edsger', 0);
    INSERT INTO order_items VALUES (1, 1, 1), (2, 7, 2), (3, 9, 1);";

/// The database, and the directory that is removed with it.
#[derive(Debug)]
pub(crate) struct Store {
    pool: Pool<Sqlite>,
    directory: Directory,
}

impl Store {
    pub(crate) async fn create() -> Result<Self, Failure> {
        let directory = Directory::create()?;
        let options = SqliteConnectOptions::new()
            .filename(directory.0.join("shop.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        // The one line that makes an ordinary pool a counted one.
        Ok(Self { pool: Pool::from(pool), directory })
    }

    pub(crate) fn pool(&self) -> Pool<Sqlite> {
        self.pool.clone()
    }

    pub(crate) async fn remove(self) {
        self.pool.close().await;
        drop(self.directory);
    }
}

/// A directory of this process alone; gone when dropped, after an error as well.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("request-budget-shop-{}", std::process::id()));
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
