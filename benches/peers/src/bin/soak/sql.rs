//! The three SQL databases: what each calls things, and how it is looked at from outside.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use request_budget::sqlx::{Connection, Pool};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Database, MySql, Postgres, Sqlite};

use crate::ledger::{Store, Work};

/// Connections of each pool.
pub const CONNECTIONS: u32 = 8;

/// How many connections the pools have made, by [`Store`].
pub static CONNECTED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// All arguments and results are integers of 64 bits.
pub struct Texts {
    pub create: &'static [&'static str],
    pub insert: &'static str,
    pub begin: &'static str,
    pub slow: &'static str,
    pub many: &'static str,
    /// Changes of the session, by the id of the work, and the statements that take them back.
    pub lock: Option<(&'static str, &'static str)>,
    pub change: &'static [&'static str],
    pub restore: &'static [&'static str],
    /// 0 on a connection whose session nobody has changed.
    pub changes: &'static str,
    /// What is open or held in other sessions, one a row.
    pub left: &'static [&'static str],
    pub rows: &'static str,
}

/// What handlers and checks do with an SQL database.
///
/// Implemented for each by a macro: what sqlx asks of a database to bind one integer fills a page
/// of bounds.
pub trait Sql: Database {
    const STORE: Store;
    const TEXTS: Texts;

    fn execute<'a>(
        on: &'a mut Connection<Self>,
        text: &'static str,
        args: &[i64],
    ) -> BoxFuture<'a, sqlx::Result<()>>;

    /// By the text protocol, which takes `BEGIN` where the other does not.
    fn execute_raw<'a>(
        on: &'a mut Connection<Self>,
        text: &'static str,
    ) -> BoxFuture<'a, sqlx::Result<()>>;

    fn execute_on_pool<'a>(
        pool: &'a Pool<Self>,
        text: &'static str,
        args: &[i64],
    ) -> BoxFuture<'a, sqlx::Result<()>>;

    fn number<'a>(
        on: &'a mut Connection<Self>,
        text: &'static str,
    ) -> BoxFuture<'a, sqlx::Result<i64>>;

    fn numbers<'a>(pool: &'a Pool<Self>, text: &'static str) -> BoxStream<'a, sqlx::Result<i64>>;

    /// `changes`, of a connection of sqlx's own pool.
    fn changes<'a>(on: &'a mut Self::Connection) -> BoxFuture<'a, sqlx::Result<i64>>;

    fn pool(url: &str) -> BoxFuture<'_, sqlx::Result<Pool<Self>>>;

    /// What is open or held in sessions, seen from another one.
    fn left(url: &str) -> BoxFuture<'_, sqlx::Result<Vec<String>>>;

    /// How many rows there are by key.
    fn rows(url: &str, round: i64) -> BoxFuture<'_, sqlx::Result<HashMap<i64, i64>>>;

    fn copy<'a>(
        on: &'a mut Connection<Self>,
        data: &'a [u8],
        pause: BoxFuture<'a, ()>,
        finishes: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, sqlx::Result<()>>;
}

macro_rules! sql {
    ($db:ty, $store:expr, $texts:expr, $pool:expr, $left:expr, $copy:expr) => {
        impl Sql for $db {
            const STORE: Store = $store;
            const TEXTS: Texts = $texts;

            fn execute<'a>(
                on: &'a mut Connection<Self>,
                text: &'static str,
                args: &[i64],
            ) -> BoxFuture<'a, sqlx::Result<()>> {
                let query = args.iter().fold(sqlx::query(text), |query, arg| query.bind(*arg));
                Box::pin(async move { query.execute(on).await.map(drop) })
            }

            fn execute_raw<'a>(
                on: &'a mut Connection<Self>,
                text: &'static str,
            ) -> BoxFuture<'a, sqlx::Result<()>> {
                Box::pin(async move { sqlx::raw_sql(text).execute(on).await.map(drop) })
            }

            fn execute_on_pool<'a>(
                pool: &'a Pool<Self>,
                text: &'static str,
                args: &[i64],
            ) -> BoxFuture<'a, sqlx::Result<()>> {
                let query = args.iter().fold(sqlx::query(text), |query, arg| query.bind(*arg));
                Box::pin(async move { query.execute(pool).await.map(drop) })
            }

            fn number<'a>(
                on: &'a mut Connection<Self>,
                text: &'static str,
            ) -> BoxFuture<'a, sqlx::Result<i64>> {
                Box::pin(async move { sqlx::query_scalar(text).fetch_one(on).await })
            }

            fn numbers<'a>(
                pool: &'a Pool<Self>,
                text: &'static str,
            ) -> BoxStream<'a, sqlx::Result<i64>> {
                sqlx::query_scalar(text).fetch(pool).boxed()
            }

            fn changes<'a>(on: &'a mut Self::Connection) -> BoxFuture<'a, sqlx::Result<i64>> {
                let text = Self::TEXTS.changes;
                Box::pin(async move { sqlx::query_scalar(text).fetch_one(on).await })
            }

            fn pool(url: &str) -> BoxFuture<'_, sqlx::Result<Pool<Self>>> {
                Box::pin(async move {
                    let pool: sqlx::Pool<Self> = $pool(url).await?;
                    for text in Self::TEXTS.create {
                        sqlx::raw_sql(*text).execute(&pool).await?;
                    }
                    Ok(Pool::from(pool))
                })
            }

            fn left(url: &str) -> BoxFuture<'_, sqlx::Result<Vec<String>>> {
                Box::pin($left(url))
            }

            fn rows(url: &str, round: i64) -> BoxFuture<'_, sqlx::Result<HashMap<i64, i64>>> {
                Box::pin(async move {
                    let mut other =
                        <<Self as Database>::Connection as sqlx::Connection>::connect(url).await?;
                    let rows = sqlx::query_as::<_, (i64, i64)>(Self::TEXTS.rows).bind(round);
                    let rows = rows.fetch_all(&mut other).await?.into_iter().collect();
                    sqlx::Connection::close(other).await?;
                    Ok(rows)
                })
            }

            fn copy<'a>(
                on: &'a mut Connection<Self>,
                data: &'a [u8],
                pause: BoxFuture<'a, ()>,
                finishes: Box<dyn FnOnce() + Send + 'a>,
            ) -> BoxFuture<'a, sqlx::Result<()>> {
                Box::pin($copy(on, data, pause, finishes))
            }
        }
    };
}

const PATIENCE: Duration = Duration::from_secs(1);

sql!(
    Sqlite,
    Store::Sqlite,
    Texts {
        create: &[
            "CREATE TABLE soak (round BIGINT, work BIGINT, part BIGINT, PRIMARY KEY (work, part))"
        ],
        insert: "INSERT INTO soak VALUES ($1, $2, $3)",
        begin: "BEGIN IMMEDIATE",
        slow: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) SELECT count(*) FROM n",
        many: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) SELECT i FROM n",
        lock: None,
        change: &[
            "CREATE TEMP TABLE soak_temp (a BIGINT)",
            "INSERT INTO temp.soak_temp VALUES (1)"
        ],
        restore: &["DROP TABLE temp.soak_temp"],
        changes: "SELECT count(*) FROM sqlite_temp_master",
        left: &[],
        rows: "SELECT work, count(*) FROM soak WHERE round = $1 GROUP BY work",
    },
    async |url| {
        let options: SqliteConnectOptions = std::str::FromStr::from_str(url)?;
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(sqlx::sqlite::SqliteSynchronous::Off)
            .busy_timeout(PATIENCE);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        let pool = pool.after_connect(|_, _| {
            CONNECTED[Store::Sqlite as usize].fetch_add(1, Relaxed);
            Box::pin(async { Ok(()) })
        });
        pool.connect_with(options).await
    },
    left_in_sqlite,
    no_copy
);

/// Takes every lock of the file, at once.
async fn left_in_sqlite(url: &str) -> sqlx::Result<Vec<String>> {
    let options: SqliteConnectOptions = std::str::FromStr::from_str(url)?;
    let options = options.busy_timeout(Duration::ZERO);
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await?;
    let mut left = Vec::new();
    match sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut other).await {
        Ok(_) => {}
        Err(error) => left.push(format!("a transaction that writes: {error}")),
    }
    let checkpoint = sqlx::query_as::<_, (i64, i64, i64)>("PRAGMA wal_checkpoint(TRUNCATE)");
    let (is_busy, ..) = checkpoint.fetch_one(&mut other).await?;
    if is_busy != 0 {
        left.push("a transaction that reads".to_owned());
    }
    sqlx::Connection::close(other).await?;
    Ok(left)
}

type Finishes<'a> = Box<dyn FnOnce() + Send + 'a>;

async fn no_copy<DB: Database>(
    _: &mut Connection<DB>,
    _: &[u8],
    _: BoxFuture<'_, ()>,
    _: Finishes<'_>,
) -> sqlx::Result<()> {
    Err(sqlx::Error::Protocol("there is no COPY".to_owned()))
}

sql!(
    Postgres,
    Store::Postgres,
    Texts {
        create: &[
            "CREATE TABLE soak (round BIGINT, work BIGINT, part BIGINT, PRIMARY KEY (work, part))",
            "CREATE ROLE soak_role",
            "GRANT ALL ON soak TO soak_role",
        ],
        insert: "INSERT INTO soak VALUES ($1, $2, $3)",
        begin: "BEGIN",
        slow: "SELECT 1::bigint FROM pg_sleep(0.01)",
        many: "SELECT i::bigint FROM generate_series(1, 2000) i",
        lock: Some(("SELECT pg_advisory_lock($1)", "SELECT pg_advisory_unlock($1)")),
        change: &[
            "CREATE TEMP TABLE soak_temp (a BIGINT)",
            "SET ROLE soak_role",
            "SET statement_timeout = 12345",
        ],
        restore: &["RESET statement_timeout", "RESET ROLE", "DROP TABLE pg_temp.soak_temp"],
        changes: "SELECT (current_user <> session_user)::int::bigint
            + (current_setting('statement_timeout') <> '0')::int
            + (to_regclass('pg_temp.soak_temp') IS NOT NULL)::int
            + (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')",
        left: &[
            "SELECT format('pid %s %s: %s', pid, state, query) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'",
            "SELECT format('%s %s %s of pid %s after %s', locktype, mode, objid, pid,
                (SELECT query FROM pg_stat_activity a WHERE a.pid = l.pid))
                FROM pg_locks l WHERE pid IN (SELECT pid FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())",
            "SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts",
            // More than `CONNECTIONS`.
            "SELECT format('%s sessions', count(*)) FROM pg_stat_activity WHERE backend_type = 'client backend'
                AND pid <> pg_backend_pid() HAVING count(*) > 8",
        ],
        rows: "SELECT work, count(*) FROM soak WHERE round = $1 GROUP BY work",
    },
    async |url| {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        let pool = pool.after_connect(|_, _| {
            CONNECTED[Store::Postgres as usize].fetch_add(1, Relaxed);
            Box::pin(async { Ok(()) })
        });
        pool.connect(url).await
    },
    left_in_postgres,
    copy_into_postgres
);

async fn left_in_postgres(url: &str) -> sqlx::Result<Vec<String>> {
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(url).await?;
    let mut left = Vec::new();
    for text in Postgres::TEXTS.left {
        left.extend(sqlx::query_scalar::<_, String>(*text).fetch_all(&mut other).await?);
    }
    sqlx::Connection::close(other).await?;
    Ok(left)
}

async fn copy_into_postgres(
    on: &mut Connection<Postgres>,
    data: &[u8],
    pause: BoxFuture<'_, ()>,
    finishes: Finishes<'_>,
) -> sqlx::Result<()> {
    let mut copy = on.unmetered().copy_in_raw("COPY soak FROM STDIN").await?;
    let (first, second) = data.split_at(data.len() / 2);
    copy.send(first).await?;
    pause.await;
    copy.send(second).await?;
    finishes();
    copy.finish().await.map(drop)
}

sql!(
    MySql,
    Store::Mariadb,
    Texts {
        create: &["CREATE TABLE soak (round BIGINT, work BIGINT, part BIGINT, PRIMARY KEY (work, part)) ENGINE=InnoDB"],
        insert: "INSERT INTO soak VALUES (?, ?, ?)",
        begin: "BEGIN",
        slow: "SELECT SLEEP(0.01)",
        many: "SELECT CAST(seq AS SIGNED) FROM seq_1_to_2000",
        lock: Some((
            "SELECT GET_LOCK(CONCAT('soak_', ?), 1)",
            "SELECT RELEASE_LOCK(CONCAT('soak_', ?))"
        )),
        change: &[
            "CREATE TEMPORARY TABLE soak_temp (a BIGINT)",
            "SET @soak = 1",
            "SET SESSION max_statement_time = 12",
        ],
        restore: &[
            "SET SESSION max_statement_time = DEFAULT",
            "SET @soak = NULL",
            "DROP TEMPORARY TABLE soak_temp",
        ],
        changes: "SELECT CAST(@@in_transaction + (@soak IS NOT NULL)
            + (@@session.max_statement_time <> @@global.max_statement_time) AS SIGNED)",
        left: &[
            "SELECT CONCAT('transaction of thread ', t.trx_mysql_thread_id, ' since ', t.trx_started, ' ',
                COALESCE(t.trx_query, '')) FROM information_schema.innodb_trx t
                WHERE t.trx_mysql_thread_id NOT IN (0, CONNECTION_ID())",
            "SELECT CONCAT(lock_mode, ' ', lock_type, ' ', table_schema, '.', table_name, ' of thread ', thread_id)
                FROM information_schema.metadata_lock_info WHERE thread_id <> CONNECTION_ID()",
            "SELECT CONCAT('thread ', id, ' ', command, ': ', COALESCE(info, ''))
                FROM information_schema.processlist WHERE command NOT IN ('Sleep', 'Daemon')
                AND db = DATABASE() AND id <> CONNECTION_ID()",
            "SELECT CONCAT(count(*), ' sessions') FROM information_schema.processlist
                WHERE db = DATABASE() AND id <> CONNECTION_ID() HAVING count(*) > 8",
        ],
        rows: "SELECT work, count(*) FROM soak WHERE round = ? GROUP BY work",
    },
    async |url| {
        let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        let pool = pool.after_connect(|_, _| {
            CONNECTED[Store::Mariadb as usize].fetch_add(1, Relaxed);
            Box::pin(async { Ok(()) })
        });
        pool.connect(url).await
    },
    left_in_mariadb,
    no_copy
);

async fn left_in_mariadb(url: &str) -> sqlx::Result<Vec<String>> {
    let mut other = <sqlx::MySqlConnection as sqlx::Connection>::connect(url).await?;
    // Shows named locks, too, but not every package has it.
    drop(sqlx::raw_sql("INSTALL SONAME 'metadata_lock_info'").execute(&mut other).await);
    let mut left = Vec::new();
    for text in MySql::TEXTS.left {
        let found = sqlx::query_scalar::<_, String>(*text).fetch_all(&mut other).await;
        match found {
            Ok(found) => left.extend(found),
            Err(error) if text.contains("metadata_lock_info") => {
                static SAID: std::sync::Once = std::sync::Once::new();
                SAID.call_once(|| println!("MariaDB: metadata locks are not seen: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    sqlx::Connection::close(other).await?;
    Ok(left)
}

/// Named locks that are held, of these.
pub async fn named_locks_in_mariadb(url: &str, ids: &[u64]) -> sqlx::Result<Vec<u64>> {
    let mut other = <sqlx::MySqlConnection as sqlx::Connection>::connect(url).await?;
    let mut held = Vec::new();
    for id in ids {
        let text = "SELECT IS_USED_LOCK(CONCAT('soak_', ?)) IS NOT NULL";
        let is_held =
            sqlx::query_scalar::<_, i64>(text).bind(*id as i64).fetch_one(&mut other).await?;
        if is_held != 0 {
            held.push(*id);
        }
    }
    sqlx::Connection::close(other).await?;
    Ok(held)
}

/// Tries the pool: all of its connections can be had, and their sessions are as new.
pub async fn check_pool<DB: Sql>(pool: &sqlx::Pool<DB>) -> Vec<String> {
    let mut found = Vec::new();
    let mut held = Vec::new();
    for place in 0..CONNECTIONS {
        // Longer than the pool's own patience: it tries again where a server has just come back.
        let mut connection = pool.acquire().await;
        for _ in 0..5 {
            if connection.is_ok() {
                break;
            }
            connection = pool.acquire().await;
        }
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                found.push(format!("connection {place} of {CONNECTIONS} cannot be had: {error}"));
                break;
            }
        };
        match DB::changes(&mut connection).await {
            Ok(0) => {}
            Ok(changes) => {
                found.push(format!("a connection with {changes} changes of its session"))
            }
            Err(error) => found.push(format!("a connection that fails: {error}")),
        }
        held.push(connection);
    }
    found
}

/// Drains a stream of numbers, waiting now and then.
pub async fn read_some<DB: Sql>(pool: &Pool<DB>, most: usize, work: &Work) -> sqlx::Result<usize> {
    let mut numbers = DB::numbers(pool, DB::TEXTS.many);
    let mut read = 0;
    while read < most && numbers.try_next().await?.is_some() {
        read += 1;
        if read % 300 == 0 {
            work.pause("between rows").await;
        }
    }
    Ok(read)
}
