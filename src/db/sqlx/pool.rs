//! The instrumented pool.

use std::fmt;
use std::sync::Arc;

use sqlx::pool::{CloseEvent, PoolOptions};
use sqlx::{Database, Executor, SqlSafeStr};

use super::address;
use super::connection::PoolConnection;
use super::kind::Kind;
use super::methods::{Executes, Methods};
use super::transaction::Transaction;
use crate::db::driver::Driver;
use crate::db::{Begun, ConnectionWait};
use crate::meter::pools::PoolId;
use crate::meter::table::DatabaseId;
use crate::report::unmeasured::statements_are_metered;

/// A pool whose statements are counted.
///
/// Made from a [`sqlx::Pool`]; a handle like that one, cheap to clone. See the [module
/// docs](super).
pub struct Pool<DB: Database> {
    inner: sqlx::Pool<DB>,
    methods: &'static Methods<DB>,
    kind: Kind,
    database: DatabaseId,
    name: PoolId,
}

impl<DB: Database> Pool<DB> {
    /// Names the pool in what is reported of waits for its connections, at most 100 characters of
    /// it.
    ///
    /// Unless it is named, that is where it connects to, as in
    /// `postgres://db.example.com:5432/shop`. About a thousand names are distinguished in a
    /// process; further pools have none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
    /// use std::time::Duration;
    /// use request_budget::{Budget, BudgetExt, sqlx::Pool};
    /// use sqlx::sqlite::SqlitePoolOptions;
    ///
    /// let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// let pool = Pool::from(pool).with_name("replica");
    /// let _held = pool.acquire().await?;
    /// let budget = Budget::new().total_time(Duration::from_millis(20));
    /// let work = pool.acquire().budgeted("export", budget);
    /// let cause = work.await.unwrap_err().violation().cause.clone();
    /// assert_eq!(cause.unwrap().pool(), Some("replica"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self { name: PoolId::of(name), ..self }
    }

    /// sqlx's own pool.
    ///
    /// **What passes through it is not counted**, and no limit holds for it. For what needs sqlx's
    /// own type (migrations, `LISTEN`) and for its settings and figures (`size`, `options`).
    #[must_use]
    pub fn unmetered(&self) -> &sqlx::Pool<DB> {
        &self.inner
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// Returns the error of the pool.
    pub fn acquire(&self) -> impl Future<Output = sqlx::Result<PoolConnection<DB>>> + 'static {
        let pool = self.clone();
        async move { Ok(pool.checkout().await?.0) }
    }

    /// As [`acquire`](Self::acquire), but borrowed, and for something that begins right then. The
    /// future of the driver is large: it is made where it stays, because each variable that holds
    /// it on the way would be a copy of it.
    pub(super) async fn checkout(&self) -> sqlx::Result<(PoolConnection<DB>, Begun)> {
        let wait = ConnectionWait::start(self.name);
        let connection = Driver::for_itself(self.inner.acquire()).await?;
        Ok((self.metered(connection), wait.end()))
    }

    /// Takes a connection if one is idle.
    #[must_use]
    pub fn try_acquire(&self) -> Option<PoolConnection<DB>> {
        Some(self.metered(self.inner.try_acquire()?))
    }

    fn metered(&self, connection: sqlx::pool::PoolConnection<DB>) -> PoolConnection<DB> {
        PoolConnection::new(connection, self.methods, self.kind, self.database)
    }

    /// Waits for a connection and begins a transaction on it.
    ///
    /// # Errors
    ///
    /// Returns the error of the pool or of the driver, or an [`sqlx::Error::Configuration`] past a
    /// hard limit.
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, DB>> {
        Transaction::begin_pooled(self.acquire().await?, None).await
    }

    /// Begins a transaction if a connection is idle.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    pub async fn try_begin(&self) -> sqlx::Result<Option<Transaction<'static, DB>>> {
        match self.try_acquire() {
            Some(connection) => Transaction::begin_pooled(connection, None).await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits for a connection and begins a transaction by this statement instead of `BEGIN`.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    pub async fn begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> sqlx::Result<Transaction<'static, DB>> {
        let statement = statement.into_sql_str();
        Transaction::begin_pooled(self.acquire().await?, Some(statement)).await
    }

    /// Begins a transaction by this statement if a connection is idle.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    pub async fn try_begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> sqlx::Result<Option<Transaction<'static, DB>>> {
        let statement = statement.into_sql_str();
        match self.try_acquire() {
            Some(connection) => {
                Transaction::begin_pooled(connection, Some(statement)).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Closes the pool: waits for its connections to come back, and closes them.
    pub async fn close(&self) {
        self.inner.close().await;
    }

    /// Whether the pool has been closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// The settings of the pool.
    #[must_use]
    pub fn options(&self) -> &PoolOptions<DB> {
        self.inner.options()
    }

    /// The settings that new connections are made with.
    #[must_use]
    pub fn connect_options(&self) -> Arc<OptionsOf<DB>> {
        self.inner.connect_options()
    }

    /// Completes when the pool is closed.
    #[must_use]
    pub fn close_event(&self) -> CloseEvent {
        self.inner.close_event()
    }

    /// How many connections there are, idle ones included.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.inner.size()
    }

    /// How many connections are idle.
    #[must_use]
    pub fn num_idle(&self) -> usize {
        self.inner.num_idle()
    }
}

/// As sqlx makes its own pools. With settings of the pool, make one by
/// [`PoolOptions`](sqlx::pool::PoolOptions) and turn it into one of these with `Pool::from`.
impl<DB: Database> Pool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Makes a pool, and its first connection.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver: the address is wrong, or the server does not answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
    /// use request_budget::sqlx::Pool;
    /// use sqlx::Sqlite;
    ///
    /// let pool = Pool::<Sqlite>::connect("sqlite::memory:").await?;
    /// sqlx::query("SELECT 1").execute(&pool).await?;
    /// assert_eq!(pool.size(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn connect(url: &str) -> sqlx::Result<Self> {
        sqlx::Pool::connect(url).await.map(Self::from)
    }

    /// Makes a pool whose connections are made with these settings, and its first connection.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(options: OptionsOf<DB>) -> sqlx::Result<Self> {
        sqlx::Pool::connect_with(options).await.map(Self::from)
    }

    /// Makes a pool, and a connection where the first is needed.
    ///
    /// # Errors
    ///
    /// Returns an error if the address is wrong.
    pub fn connect_lazy(url: &str) -> sqlx::Result<Self> {
        sqlx::Pool::connect_lazy(url).map(Self::from)
    }

    /// Makes a pool whose connections are made with these settings, where the first is needed.
    #[must_use]
    pub fn connect_lazy_with(options: OptionsOf<DB>) -> Self {
        sqlx::Pool::connect_lazy_with(options).into()
    }
}

type OptionsOf<DB> = <<DB as Database>::Connection as sqlx::Connection>::Options;

impl<DB: Executes> From<sqlx::Pool<DB>> for Pool<DB> {
    fn from(inner: sqlx::Pool<DB>) -> Self {
        statements_are_metered();
        let kind = Kind::of(&inner);
        // What it connects to and how: two pools of one database with the same settings are the
        // same.
        let database = DatabaseId::of(&inner.connect_options());
        let name = PoolId::of(&address::of(&inner, kind));
        Self { inner, methods: DB::methods(), kind, database, name }
    }
}

impl<DB: Database> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        let Self { inner, methods, kind, database, name } = self;
        Self { inner: inner.clone(), methods, kind: *kind, database: *database, name: *name }
    }
}

impl<DB: Database> fmt::Debug for Pool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.inner).finish()
    }
}
