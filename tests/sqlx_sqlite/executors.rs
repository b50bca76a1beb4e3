//! Every way in which sqlx lets a statement be executed counts, and compiles without a change.

use futures_util::TryStreamExt;
use request_budget::db::sqlx::{Connection, Pool};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{
    Connection as _, Either, Executor, FromRow, QueryBuilder, Row, SqlSafeStr, Sqlite,
    SqliteExecutor,
};
use tracing::Instrument;

use crate::{CONNECTIONS, measure, pool};

/// A function of a program, as it is written for sqlx.
async fn names(on: impl Executor<'_, Database = Sqlite>) -> Vec<String> {
    sqlx::query_scalar("SELECT name FROM items").fetch_all(on).await.unwrap()
}

/// The same, by the driver's alias.
async fn rename(on: impl SqliteExecutor<'_>, name: &str) -> u64 {
    let update = sqlx::query("UPDATE items SET name = $1").bind(name);
    update.execute(on).await.unwrap().rows_affected()
}

#[tokio::test]
async fn functions_generic_over_the_executor_take_pool_connection_and_transaction() {
    let pool = pool().await;
    let work = async {
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(rename(&mut *connection, "by connection").await, 1);
        assert_eq!(names(&mut *connection).await, ["by connection"]);
        let mut transaction = connection.begin().await.unwrap();
        assert_eq!(rename(&mut *transaction, "by transaction").await, 1);
        assert_eq!(names(&mut *transaction).await, ["by transaction"]);
        let mut savepoint = transaction.begin().await.unwrap();
        assert_eq!(rename(&mut *savepoint, "by savepoint").await, 1);
        savepoint.rollback().await.unwrap();
        assert_eq!(names(&mut *transaction).await, ["by transaction"]);
        transaction.commit().await.unwrap();
        assert_eq!(names(&mut *connection).await, ["by transaction"]);
        assert_eq!(rename(&pool, "by pool").await, 1);
        assert_eq!(names(&pool.clone()).await.len(), 1);
    };
    let (usage, texts) = measure(&pool, work).await;
    assert_eq!(texts["SELECT name FROM items"], 5);
    assert_eq!(texts["UPDATE items SET name = $1"], 4);
    assert_eq!((usage.queries, usage.repeated_queries), (9, 5));
    assert_eq!((usage.rows, usage.transactions), (5, 2));
}

#[derive(Debug, PartialEq, FromRow)]
struct Item {
    id: i64,
    name: String,
}

#[tokio::test]
async fn query_as_and_scalar_and_map_and_builder_count() {
    let pool = pool().await;
    let work = async {
        let first = Item { id: 1, name: "first".to_owned() };
        let item: Item = sqlx::query_as("SELECT id, name FROM items").fetch_one(&pool).await?;
        assert_eq!(item, first);
        let pair: Option<(i64, String)> =
            sqlx::query_as("SELECT id, name FROM items").fetch_optional(&pool).await?;
        assert_eq!(pair, Some((1, "first".to_owned())));
        let five = sqlx::query_scalar::<_, i64>("SELECT i FROM numbers WHERE i <= $1").bind(5);
        assert_eq!(five.fetch_all(&pool).await?, [1, 2, 3, 4, 5]);
        let double = |row: SqliteRow| row.get::<i64, _>(0) * 2;
        let mapped = sqlx::query("SELECT i FROM numbers WHERE i <= 3").map(double);
        assert_eq!(mapped.fetch(&pool).try_collect::<Vec<_>>().await?, [2, 4, 6]);
        let try_map = sqlx::query("SELECT i FROM numbers WHERE i <= 2");
        let try_map = try_map.try_map(|row: SqliteRow| row.try_get::<i64, _>("no such column"));
        assert!(try_map.fetch_all(&pool).await.is_err());
        let mut builder = QueryBuilder::<Sqlite>::new("INSERT INTO items (name) ");
        builder.push_values(["second", "third"], |mut row, name| {
            row.push_bind(name);
        });
        assert_eq!(builder.build().execute(&pool).await?.rows_affected(), 2);
        Ok::<_, sqlx::Error>(())
    };
    let (usage, texts) = measure(&pool, async { work.await.unwrap() }).await;
    assert_eq!(texts.values().sum::<u64>(), 6);
    assert_eq!((usage.queries, usage.repeated_queries), (6, 2));
    // The first row that cannot be mapped was read; the second one was not.
    assert_eq!((usage.rows, usage.transactions), (1 + 1 + 5 + 3 + 1, 0));
}

#[tokio::test]
async fn the_methods_of_the_executor_count() {
    let pool = pool().await;
    let three = || sqlx::query("SELECT i FROM numbers WHERE i <= 3");
    let work = async {
        pool.execute(three()).await?;
        assert_eq!(pool.execute_many(three()).try_collect::<Vec<_>>().await?.len(), 1);
        assert_eq!(pool.fetch(three()).try_collect::<Vec<_>>().await?.len(), 3);
        let results: Vec<_> = pool.fetch_many(three()).try_collect().await?;
        let [Either::Right(_), Either::Right(_), Either::Right(_), Either::Left(_)] = results[..]
        else {
            panic!("three rows and their end, not {}", results.len())
        };
        assert_eq!(pool.fetch_all(three()).await?.len(), 3);
        assert_eq!(pool.fetch_one(three()).await?.get::<i64, _>(0), 1);
        assert!(pool.fetch_optional(three()).await?.is_some());
        assert!(pool.fetch_optional("SELECT 1 WHERE false").await?.is_none());
        let missing = pool.fetch_one("SELECT 1 WHERE false").await.unwrap_err();
        assert!(matches!(missing, sqlx::Error::RowNotFound));
        Ok::<_, sqlx::Error>(())
    };
    let (usage, texts) = measure(&pool, async { work.await.unwrap() }).await;
    assert_eq!(texts.values().sum::<u64>(), 9);
    assert_eq!((usage.queries, usage.repeated_queries), (9, 7));
    assert_eq!(usage.rows, 3 + 3 + 3 + 1 + 1);
}

#[tokio::test]
async fn every_statement_of_a_batch_counts() {
    let pool = pool().await;
    let batch = "SELECT 1; UPDATE items SET name = 'x'; SELECT i FROM numbers WHERE i <= 4";
    let work = async {
        sqlx::raw_sql(batch).execute(&pool).await?;
        assert_eq!(sqlx::raw_sql(batch).fetch_all(&pool).await?.len(), 5);
        // A text by itself is a batch too, also of one.
        pool.execute("SELECT 1").await?;
        // The third statement of four fails, and ends it.
        let failing = "SELECT 1; SELECT 2; SELEC 3; SELECT 4";
        assert!(sqlx::raw_sql(failing).fetch_all(&pool).await.is_err());
        Ok::<_, sqlx::Error>(())
    };
    let (usage, texts) = measure(&pool, async { work.await.unwrap() }).await;
    assert_eq!(texts.values().sum::<u64>(), 4, "one event a text");
    assert_eq!((usage.queries, usage.repeated_queries), (3 + 3 + 1 + 3, 2));
    assert_eq!(usage.rows, 5, "what failed hands nothing out");
}

#[tokio::test]
async fn other_ways_to_a_connection_or_transaction_count() {
    let pool = pool().await;
    let work = async {
        let mut connection = pool.try_acquire().expect("all are idle");
        names(&mut *connection).await;

        let mut immediate = pool.begin_with("BEGIN IMMEDIATE").await?;
        names(&mut *immediate).await;
        let nested = immediate.begin_with("BEGIN IMMEDIATE").await.unwrap_err();
        assert!(matches!(nested, sqlx::Error::InvalidSavePointStatement));

        let mut tried = pool.try_begin().await?.expect("one is idle");
        names(&mut *tried).await;
        assert!(pool.try_begin().await?.is_none(), "none is idle");
        assert!(pool.try_begin_with("BEGIN").await?.is_none(), "none is idle");
        assert!(pool.try_acquire().is_none());
        tried.rollback().await?;
        drop(immediate);
        connection.begin_with("BEGIN EXCLUSIVE").await?.commit().await?;

        let mut detached = connection.detach();
        names(&mut detached).await;
        detached.ping().await?;
        detached.close().await
    };
    let (usage, texts) = measure(&pool, async { work.await.unwrap() }).await;
    assert_eq!(texts["SELECT name FROM items"], 4);
    assert_eq!((usage.queries, usage.repeated_queries), (4, 4));
    assert_eq!((usage.rows, usage.transactions), (4, 3));
}

#[tokio::test]
async fn a_connection_of_no_pool_counts() {
    let pool = pool().await;
    let mut connection =
        Connection::<Sqlite>::new(SqliteConnection::connect("sqlite::memory:").await.unwrap());
    let work = async {
        connection.execute("CREATE TABLE t (i)").await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute("INSERT INTO t VALUES (1), (2)").await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(connection.fetch_all("SELECT i FROM t").await.unwrap().len(), 2);
        connection.ping().await.unwrap();
    };
    let (usage, texts) = measure(&pool, work).await;
    assert_eq!(texts.values().sum::<u64>(), 3);
    assert_eq!((usage.queries, usage.rows, usage.transactions), (3, 2, 1));
}

#[tokio::test]
async fn a_connection_taken_before_the_work_counts_for_the_work_that_uses_it() {
    let pool = pool().await;
    let mut connection = pool.acquire().await.unwrap();
    names(&mut *connection).await;
    let work = async { drop(names(&mut *connection).await) };
    let usage = crate::usage_of(work).await;
    assert_eq!((usage.queries, usage.rows), (1, 1));
    assert_eq!(usage.connection_wait.as_nanos(), 0);
}

#[tokio::test]
async fn what_executes_nothing_counts_nothing() {
    let pool = pool().await;
    let work = async {
        pool.prepare("SELECT i FROM numbers".into_sql_str()).await.unwrap();
        pool.describe("SELECT i FROM numbers".into_sql_str()).await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        connection.ping().await.unwrap();
        connection.prepare("SELEC".into_sql_str()).await.unwrap_err();
        connection.close().await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        connection.close_on_drop();
        drop(connection);
        drop(sqlx::query("SELECT 1").fetch_all(&pool));
        drop(sqlx::query("SELECT 1").fetch(&pool));
        drop(pool.begin());
    };
    let (usage, _) = measure(&pool, work).await;
    assert_eq!((usage.queries, usage.repeated_queries), (0, 0));
    assert_eq!((usage.rows, usage.transactions), (0, 0));
    assert_eq!((usage.query_time.as_nanos(), usage.slow_query.as_nanos()), (0, 0));
}

#[tokio::test]
async fn what_passes_through_the_inner_pool_is_not_counted() {
    let pool = pool().await;
    let work = async {
        pool.unmetered().execute("SELECT 1").await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        connection.unmetered().execute("SELECT 1").await.unwrap();
    };
    let (usage, texts) = measure(&pool, work).await;
    assert_eq!(texts["SELECT 1"], 2);
    assert_eq!(usage.queries, 0);
}

#[tokio::test]
async fn the_figures_of_the_pool_are_those_of_the_inner_one() {
    let pool: Pool<Sqlite> = pool().await;
    assert_eq!((pool.size(), pool.unmetered().size()), (CONNECTIONS, CONNECTIONS));
    let held = pool.acquire().await.unwrap();
    assert_eq!(pool.num_idle(), pool.unmetered().num_idle());
    drop(held);
    pool.close().await;
    assert!(pool.is_closed() && pool.unmetered().is_closed());
    let work = async {
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        assert!(matches!(error, sqlx::Error::PoolClosed));
    };
    assert_eq!(crate::usage_of(work).await.queries, 0, "it never got a connection");
}

#[tokio::test]
async fn hooks_of_a_metered_pool_are_neither_counted_nor_unmetered() {
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let hook = "SELECT 'hook'";
    let options = options
        .after_connect(move |connection, _| {
            Box::pin(async move { connection.execute(hook).await.map(drop) })
        })
        .before_acquire(move |connection, _| {
            Box::pin(async move { connection.execute(hook).await.map(|_| true) })
        });
    let pool: Pool<Sqlite> = options.connect_lazy("sqlite::memory:").unwrap().into();
    // All of it on one text, so that one thing more is seen than was counted if any is mistaken.
    let work = async {
        for _ in 0..3 {
            pool.execute(hook).await.unwrap();
        }
        pool.describe(hook.into_sql_str()).await.unwrap();
        pool.prepare(hook.into_sql_str()).await.unwrap();
    };
    let witness = crate::Witness::new();
    let usage = crate::usage_of(work).instrument(witness.span()).await;
    // The connection has done all that it was sent.
    pool.unmetered().acquire().await.unwrap().ping().await.unwrap();
    assert!(witness.count() > 3 + 4, "the hooks were seen: {:?}", witness.texts());
    assert_eq!((usage.queries, usage.unmetered), (3, 0));

    // What is executed past it is unmetered still, also where it is the text of a hook.
    let work = async {
        pool.unmetered().execute(hook).await.unwrap();
    };
    let witness = crate::Witness::new();
    let usage = crate::usage_of(work).instrument(witness.span()).await;
    assert_eq!((usage.queries, usage.unmetered > 0), (0, true));
}
