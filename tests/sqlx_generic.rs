//! Code that is generic over the database compiles as it does without this crate, on plain pools of sqlx and on
//! metered ones, without naming the database.

use request_budget::sqlx::{Connection, Pool};
use request_budget::{Budget, BudgetExt, Usage};
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
    let plain = SqlitePool::connect("sqlite::memory:").await.unwrap();
    let pool = Pool::from(plain);
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
