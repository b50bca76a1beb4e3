//! Random programs that change their session and are ended at random points: whoever is given the
//! connection next finds a session as new.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures_util::{FutureExt, TryStreamExt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Limit};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Executor, MySqlPool, PgPool, SqlitePool};
use tokio::task::yield_now;

use crate::rows::at_most;
use crate::{Suite, runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[("session_of_postgres_is_as_new_after_any_end", postgres)],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("session_of_mariadb_is_as_new_after_any_end", mariadb)],
    );
    suite.without_server(&[
        ("session_of_sqlite_in_memory_is_as_new_after_any_end", sqlite_in_memory),
        ("session_of_sqlite_in_a_file_is_as_new_after_any_end", sqlite_in_a_file),
    ]);
}

#[derive(Debug, Clone, Copy)]
struct Step {
    text: prop::sample::Index,
    is_second_of_batch: bool,
    way: Way,
}

/// How a text reaches the driver.
#[derive(Debug, Clone, Copy)]
enum Way {
    Raw,
    Prepared,
    FetchedAtMostOne,
    Fetched,
    BeforeBegin,
    ByConnectionOfSqlx,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Dropped after so many polls.
    Dropped(u32),
    /// The same, on a connection that was to be closed in any case.
    DroppedToBeClosed(u32),
    /// Cut by a limit on its statements.
    TooMany(u64),
    Panics,
}

/// In some of them a connection is to be closed, if `closes`.
fn programs(closes: bool) -> impl Strategy<Value = (Vec<Step>, Fate)> {
    let way = prop_oneof![
        Just(Way::Raw),
        Just(Way::Prepared),
        Just(Way::FetchedAtMostOne),
        Just(Way::Fetched),
        Just(Way::BeforeBegin),
        Just(Way::ByConnectionOfSqlx),
    ];
    let step = (any::<prop::sample::Index>(), prop::bool::weighted(0.3), way)
        .prop_map(|(text, is_second_of_batch, way)| Step { text, is_second_of_batch, way });
    let fate = prop_oneof![
        3 => (1..30_u32).prop_map(Fate::Dropped),
        u32::from(closes) => (1..30_u32).prop_map(Fate::DroppedToBeClosed),
        1 => (0..5_u64).prop_map(Fate::TooMany),
        1 => Just(Fate::Panics),
    ];
    (prop::collection::vec(step, 1..4), fate)
}

/// Runs the programs one after the other on a pool of one connection, and after each looks at the
/// session of that which sqlx's own pool gives out.
macro_rules! sessions_are_as_new {
    ($runtime:expr, $pool:expr, $texts:expr, $closes:expr, $left:expr) => {{
        let (runtime, pool, texts, left) = ($runtime, $pool, $texts, $left);
        let run = async |steps: &[Step], fate: Fate| {
            let mut connection = pool.acquire().await.expect("acquires");
            if let Fate::DroppedToBeClosed(_) = fate {
                connection.close_on_drop();
            }
            for step in steps {
                let mut text = step.text.get(texts).to_string();
                if step.is_second_of_batch {
                    text = format!("SELECT 1; {text}");
                }
                if let Way::BeforeBegin = step.way {
                    text = format!("{text}; BEGIN");
                }
                let text = AssertSqlSafe(text);
                // SQLite's driver panics where it prepares a cached batch once more and is refused.
                let is_cached = !step.is_second_of_batch;
                // Not every text can be executed in each way, or after each other.
                match step.way {
                    Way::Raw => drop(sqlx::raw_sql(text).execute(&mut *connection).await),
                    Way::Prepared => {
                        let query = sqlx::query(text).persistent(is_cached);
                        drop(query.execute(&mut *connection).await);
                    }
                    Way::FetchedAtMostOne => {
                        let query = sqlx::query(text).persistent(is_cached);
                        drop(query.fetch_optional(&mut *connection).await);
                    }
                    Way::Fetched => {
                        let query = sqlx::query(text).persistent(is_cached);
                        let mut rows = query.fetch(&mut *connection);
                        while let Ok(Some(_)) = rows.try_next().await {}
                    }
                    Way::BeforeBegin => drop(connection.begin_with(text).await),
                    Way::ByConnectionOfSqlx => {
                        drop(sqlx::raw_sql(text).execute(connection.unmetered()).await);
                    }
                }
            }
            match fate {
                // Says nothing on stderr, as `panic!` would.
                Fate::Panics => resume_unwind(Box::new("on purpose")),
                Fate::TooMany(_) => loop {
                    drop(connection.execute("SELECT 1").await);
                    yield_now().await;
                },
                Fate::Dropped(_) | Fate::DroppedToBeClosed(_) => loop {
                    yield_now().await;
                },
            }
        };
        let test = async |steps: &[Step], fate: Fate| {
            let (polls, budget) = match fate {
                Fate::Dropped(polls) | Fate::DroppedToBeClosed(polls) => (polls, Budget::new()),
                Fate::TooMany(most) => (10_000, Budget::new().queries(Limit::hard(most))),
                Fate::Panics => (10_000, Budget::new()),
            };
            let program = run(steps, fate).budgeted("program", budget);
            let ended = at_most(polls, AssertUnwindSafe(program).catch_unwind()).await;
            match fate {
                Fate::TooMany(_) => assert!(matches!(ended, Some(Ok(Err(_)))), "it is cut"),
                Fate::Panics => assert!(matches!(ended, Some(Err(_))), "it panics"),
                _ => assert!(ended.is_none(), "it is dropped"),
            }
            let found: String = left(pool.unmetered()).await;
            prop_assert_eq!(found, "");
            Ok(())
        };
        // Without shrinking: a session that the first failure has left dirty would fail every
        // program after it.
        let config = Config {
            cases: 300,
            max_shrink_iters: 0,
            failure_persistence: None,
            ..Config::default()
        };
        let result = TestRunner::new(config)
            .run(&programs($closes), |(steps, fate)| runtime.block_on(test(&steps, fate)));
        result.unwrap_or_else(|error| panic!("{error}"));
    }};
}

fn postgres(url: &str) {
    const TEXTS: &[&str] = &[
        "SELECT 1",
        "SELECT nonsense",
        "SELECT pg_advisory_lock(812)",
        "BEGIN",
        "COMMIT",
        "CREATE TEMP TABLE t (a INT)",
        "SET statement_timeout = 12345",
        "SET ROLE pg_monitor",
        "SELECT set_config('a.b', 'x', false)",
        "LISTEN news",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "PREPARE p AS SELECT 1",
    ];
    const LEFT: &str = "SELECT concat_ws(' ', \
        (SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() LIMIT \
        1), (SELECT 'temporary' FROM pg_class WHERE relnamespace = pg_my_temp_schema() LIMIT 1), \
        (SELECT 'channel' FROM pg_listening_channels() LIMIT 1), \
        (SELECT 'cursor' FROM pg_cursors WHERE is_holdable LIMIT 1), \
        (SELECT 'prepared' FROM pg_prepared_statements WHERE from_sql LIMIT 1), \
        nullif(current_setting('statement_timeout'), '0'), \
        nullif(current_setting('a.b', true), ''), \
        nullif(current_setting('role'), 'none'))";
    let runtime = runtime(0);
    let pool = PgPoolOptions::new().max_connections(1).connect(url);
    let pool = Pool::from(runtime.block_on(pool).expect("connects"));
    sessions_are_as_new!(runtime, pool, TEXTS, true, async |plain: &PgPool| {
        plain.execute("SAVEPOINT s").await.expect_err("no transaction is open");
        sqlx::query_scalar(LEFT).fetch_one(plain).await.expect("fetches")
    });
}

fn mariadb(url: &str) {
    const TEXTS: &[&str] = &[
        "SELECT 1",
        "SELECT nonsense",
        "SELECT GET_LOCK('session', 1)",
        "BEGIN",
        "COMMIT",
        "LOCK TABLES kept WRITE",
        "SET @left = 1",
        "SELECT 1 INTO @left",
        "SET SESSION max_statement_time = 77",
        "BEGIN NOT ATOMIC SET SESSION max_statement_time = 77; END",
        "CREATE TEMPORARY TABLE temporary (b INT)",
        "USE mysql",
        "INSERT INTO kept VALUES (1)",
    ];
    const LEFT: &str = "SELECT CAST(concat_ws(' ', @left, nullif(@@max_statement_time, 0), \
        nullif(@@in_transaction, 0), nullif(database(), 'budget_session'), \
        nullif(IS_FREE_LOCK('session'), 1)) AS CHAR)";
    let runtime = runtime(0);
    let (pool, admin) = runtime.block_on(async {
        let admin = MySqlPool::connect(url).await.expect("connects");
        let make = "DROP DATABASE IF EXISTS budget_session; CREATE DATABASE budget_session; \
                    CREATE TABLE budget_session.kept (a INT)";
        sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
        let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
        let options = options.database("budget_session");
        let pool = MySqlPoolOptions::new().max_connections(1).connect_with(options);
        (Pool::from(pool.await.expect("connects")), admin)
    });
    sessions_are_as_new!(runtime, pool, TEXTS, true, async |plain: &MySqlPool| {
        let left = sqlx::query_scalar(LEFT).fetch_one(plain).await.expect("fetches");
        plain.execute("SELECT b FROM temporary").await.expect_err("there is no such table");
        let locked = "LOCK TABLES budget_session.kept WRITE WAIT 5; UNLOCK TABLES";
        sqlx::raw_sql(locked).execute(&admin).await.expect("nobody has it locked");
        left
    });
}

const SQLITE: [&str; 7] = [
    "SELECT 1",
    "SELECT nonsense",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "CREATE TEMP TABLE t (a INT)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "INSERT INTO kept VALUES (1)",
];

async fn left_in_sqlite(plain: &SqlitePool) -> String {
    const LEFT: &str = "SELECT coalesce(group_concat(found, ' '), '') FROM ( \
        SELECT name AS found FROM sqlite_temp_schema UNION ALL \
        SELECT name FROM pragma_database_list WHERE name NOT IN ('main', 'temp') UNION ALL \
        SELECT 'setting' FROM pragma_cache_size WHERE cache_size = 77)";
    let left = sqlx::query_scalar(LEFT).fetch_one(plain).await.expect("fetches");
    let begin = plain.execute("BEGIN IMMEDIATE; SELECT a FROM kept; ROLLBACK");
    begin.await.expect("no transaction is open, and the table is there");
    left
}

async fn sqlite(pool: SqlitePoolOptions, options: SqliteConnectOptions) -> Pool<sqlx::Sqlite> {
    let pool = pool.max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = pool.connect_with(options).await.expect("connects");
    pool.execute("CREATE TABLE kept (a INT)").await.expect("makes a table");
    Pool::from(pool)
}

fn sqlite_in_memory() {
    let runtime = runtime(0);
    // The pool closes a connection whose test is dropped midway, which would lose the data; so does
    // `closes`.
    let pool = SqlitePoolOptions::new().test_before_acquire(false);
    let pool = runtime.block_on(sqlite(pool, ":memory:".parse().expect("an address")));
    let closes = false;
    sessions_are_as_new!(runtime, pool, &SQLITE, closes, left_in_sqlite);
}

fn sqlite_in_a_file() {
    let runtime = runtime(0);
    let file = format!("request-budget-session-{}.db", std::process::id());
    let file = std::env::temp_dir().join(file);
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let pool = runtime
        .block_on(sqlite(SqlitePoolOptions::new(), options.synchronous(SqliteSynchronous::Off)));
    // In memory only what has been seen of these can be undone.
    let texts = [&SQLITE[..], &["ATTACH ':memory:' AS other", "PRAGMA cache_size = 77"]].concat();
    sessions_are_as_new!(runtime, pool, &texts, true, left_in_sqlite);
    std::fs::remove_file(&file).expect("it was made");
}
