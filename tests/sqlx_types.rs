//! Code that was written for sqlx compiles with the types of this crate, or beside them.

mod health;

use futures_util::TryStreamExt;
use request_budget::sqlx::{
    BorrowedConnection, Connection, Pool, SqlitePoolConnection, SqliteTransaction,
};
use request_budget::{Budget, BudgetExt, Cut, Limit, Usage};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{
    Acquire, Connection as _, Database, Executor, Sqlite, SqliteConnection, SqliteExecutor,
    SqlitePool, Transaction,
};

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

async fn of_sqlx(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT 1").execute(connection).await.map(drop)
}

async fn by_reference<C: AsMut<SqliteConnection>>(mut connection: C) -> sqlx::Result<()> {
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

async fn count(on: impl SqliteExecutor<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM posts").fetch_one(on).await
}

/// A function that is handed sqlx's own connection.
async fn save(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let mut metered = BorrowedConnection::new(connection);
    metered.execute("CREATE TABLE posts (id INTEGER)").await?;
    metered.execute("INSERT INTO posts VALUES (1); INSERT INTO posts VALUES (2)").await?;
    assert_eq!(count(&mut metered).await?, 2);
    let ids: Vec<_> = metered.fetch("SELECT id FROM posts").try_collect().await?;
    assert_eq!(ids.len(), 2);
    assert!(metered.fetch_optional("SELECT id FROM posts WHERE id = 3").await?.is_none());
    metered.unmetered().execute("DROP TABLE posts").await.map(drop)
}

#[tokio::test]
async fn what_is_executed_on_a_borrowed_connection_is_counted() -> sqlx::Result<()> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    let work = async {
        save(&mut connection).await?;
        Ok::<_, sqlx::Error>(Usage::current().unwrap())
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap()?;
    // As on a connection of ours: both statements of a batch count.
    assert_eq!((usage.queries, usage.rows), (6, 3));
    Ok(())
}

#[tokio::test]
async fn what_is_executed_in_a_hook_through_a_borrowed_connection_is_counted() -> sqlx::Result<()> {
    let options = SqlitePoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            connection.execute("PRAGMA cache_size = 100").await?;
            BorrowedConnection::new(connection).execute("PRAGMA foreign_keys = ON").await.map(drop)
        })
    });
    let pool = Pool::from(options.connect_lazy("sqlite::memory:")?);
    let work = async {
        pool.execute("SELECT 1").await?;
        Ok::<_, sqlx::Error>(Usage::current().unwrap())
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap()?;
    assert_eq!((usage.queries, usage.unmetered), (2, 0));
    Ok(())
}

#[tokio::test]
async fn past_a_hard_limit_a_borrowed_connection_executes_nothing() -> sqlx::Result<()> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    let mut tx = Acquire::begin(&mut connection).await?;
    let work = async {
        let mut metered = BorrowedConnection::new(&mut *tx);
        metered.execute("CREATE TABLE posts (id INTEGER)").await.expect("allowed");
        let error = metered.execute("INSERT INTO posts VALUES (1)").await.expect_err("refused");
        assert!(Cut::find(&error).is_some(), "{error}");
    };
    work.budgeted("work", Budget::new().queries(Limit::hard(1))).await.expect_err("cut");
    // Its owner goes on with it.
    assert_eq!(count(&mut *tx).await?, 0);
    tx.commit().await
}

#[tokio::test]
async fn a_pool_is_made_as_one_of_sqlx() -> sqlx::Result<()> {
    let url = "sqlite::memory:";
    let options = || url.parse::<sqlx::sqlite::SqliteConnectOptions>();
    let pools = [
        Pool::<Sqlite>::connect(url).await?,
        Pool::<Sqlite>::connect_with(options()?).await?,
        Pool::<Sqlite>::connect_lazy(url)?,
        Pool::<Sqlite>::connect_lazy_with(options()?),
    ];
    assert_eq!(pools.each_ref().map(Pool::size), [1, 1, 0, 0]);
    let work = async {
        for pool in &pools {
            pool.execute("SELECT 1").await.expect("executes");
        }
        Usage::current().unwrap().queries
    };
    assert_eq!(work.budgeted("work", Budget::new()).await, Ok(4));
    assert!(Pool::<sqlx::Postgres>::connect_lazy("no address").is_err());
    Ok(())
}
