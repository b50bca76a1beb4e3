//! Code that was written for sqlx compiles with the types of this crate, or beside them.

mod health;

use request_budget::sqlx::{Connection, Pool, SqlitePoolConnection, SqliteTransaction};
use request_budget::{Budget, BudgetExt, Usage};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Acquire, Database, Executor, Sqlite, SqlitePool, Transaction};

async fn on_pool<DB: Database>(pool: &sqlx::Pool<DB>) -> sqlx::Result<()>
where
    for<'c> &'c sqlx::Pool<DB>: Executor<'c, Database = DB>,
{
    sqlx::raw_sql("SELECT 1").execute(pool).await.map(drop)
}

async fn on_connection<DB: Database>(connection: &mut DB::Connection) -> sqlx::Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    connection.execute("SELECT 1").await.map(drop)
}

async fn on_transaction<DB: Database>(transaction: &mut Transaction<'_, DB>) -> sqlx::Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    (&mut **transaction).execute("SELECT 1").await.map(drop)
}

async fn acquired<'a, DB: Database, A: Acquire<'a, Database = DB>>(from: A) -> sqlx::Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    from.acquire().await?.execute("SELECT 1").await.map(drop)
}

struct Repository<DB: Database> {
    pool: sqlx::Pool<DB>,
}

impl<DB: Database> Repository<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    async fn ping(&self) -> sqlx::Result<()> {
        self.pool.acquire().await?.execute("SELECT 1").await.map(drop)
    }
}

#[tokio::test]
async fn plain_sqlx_compiles_beside_this_crate() -> sqlx::Result<()> {
    let pool = SqlitePool::connect("sqlite::memory:").await?;
    on_pool(&pool).await?;
    on_connection::<Sqlite>(&mut *pool.acquire().await?).await?;
    let mut transaction = pool.begin().await?;
    on_transaction(&mut transaction).await?;
    transaction.commit().await?;
    acquired(&pool).await?;
    Repository { pool }.ping().await
}

async fn memory() -> Pool<Sqlite> {
    let options = SqlitePoolOptions::new().max_connections(1);
    Pool::from(options.connect("sqlite::memory:").await.expect("in memory"))
}

async fn on_metered_pool<DB: Database>(pool: &Pool<DB>) -> sqlx::Result<()>
where
    for<'c> &'c Pool<DB>: Executor<'c, Database = DB>,
{
    sqlx::raw_sql("SELECT 1").execute(pool).await.map(drop)
}

async fn on_metered_connection<DB: Database>(connection: &mut Connection<DB>) -> sqlx::Result<()>
where
    for<'c> &'c mut Connection<DB>: Executor<'c, Database = DB>,
{
    connection.execute("SELECT 1").await.map(drop)
}

/// What is metered needs no bound at all.
async fn of_any_database<DB: Database>(pool: &Pool<DB>) -> sqlx::Result<()> {
    pool.execute("SELECT 1").await?;
    let mut transaction = pool.begin().await?;
    transaction.execute("SELECT 1").await?;
    transaction.commit().await
}

#[tokio::test]
async fn metered_code_needs_no_name_of_its_database() {
    let pool = memory().await;
    let work = async {
        on_metered_pool(&pool).await?;
        on_metered_connection(&mut *pool.acquire().await?).await?;
        on_metered_connection(&mut *pool.begin().await?).await?;
        of_any_database(&pool).await?;
        Ok::<_, sqlx::Error>(Usage::current().unwrap())
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap().unwrap();
    assert_eq!((usage.queries, usage.transactions, usage.unmetered), (5, 2, 0));
}

async fn of_sqlx(connection: &mut sqlx::SqliteConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT 1").execute(connection).await.map(drop)
}

async fn by_reference<C: AsMut<sqlx::SqliteConnection>>(mut connection: C) -> sqlx::Result<()> {
    of_sqlx(connection.as_mut()).await
}

/// What takes sqlx's own connection is not counted, and that is logged.
#[tokio::test]
async fn a_metered_connection_passes_for_one_of_sqlx_and_that_is_logged() {
    let pool: request_budget::sqlx::SqlitePool = memory().await;
    let health = health::listen();
    let work = async {
        let mut tx: SqliteTransaction<'_> = pool.begin().await?;
        sqlx::query("SELECT 1").execute(tx.as_mut()).await?;
        of_sqlx(&mut tx).await?;
        tx.commit().await?;
        let mut connection: SqlitePoolConnection = pool.acquire().await?;
        sqlx::query("SELECT 2").execute(connection.as_mut()).await?;
        of_sqlx(&mut connection).await?;
        by_reference(connection).await?;
        Ok::<_, sqlx::Error>(Usage::current().unwrap())
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap().unwrap();
    assert_eq!(
        (usage.queries, usage.transactions),
        (2, 1),
        "only what a metered executor was given"
    );
    let heard = health.heard();
    let [(_, _, warning)] = &heard[..] else { panic!("{heard:?}") };
    assert!(warning.starts_with("a metered connection was passed as sqlx's own"), "{warning}");
}

#[tokio::test]
async fn a_closure_runs_in_a_metered_transaction() {
    let pool = memory().await;
    let work = async {
        let mut connection = pool.acquire().await?;
        connection.execute("CREATE TABLE posts (id INTEGER)").await?;
        connection
            .transaction(|tx| {
                Box::pin(async move { tx.execute("INSERT INTO posts VALUES (1)").await })
            })
            .await?;
        let failed = connection.transaction(|tx| {
            Box::pin(async move {
                tx.execute("INSERT INTO posts VALUES (2)").await?;
                Err::<(), _>(sqlx::Error::RowNotFound)
            })
        });
        failed.await.unwrap_err();
        drop(connection);
        let posts: Vec<i64> = sqlx::query_scalar("SELECT id FROM posts").fetch_all(&pool).await?;
        assert_eq!(posts, [1]);
        Ok::<_, sqlx::Error>(Usage::current().unwrap())
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap().unwrap();
    assert_eq!((usage.queries, usage.transactions, usage.unmetered), (4, 2, 0));
}

#[tokio::test]
async fn a_pool_has_the_settings_of_the_one_that_it_is_made_of() {
    let pool = memory().await;
    assert_eq!(pool.options().get_max_connections(), 1);
    assert!(format!("{:?}", pool.connect_options()).contains("in_memory: true"));
    let closed = pool.close_event();
    pool.close().await;
    closed.await;
}
