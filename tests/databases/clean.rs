//! What work that hangs up leaves on its connection, and what a transaction that is dropped midway
//! leaves.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::panic;
use std::pin::pin;
use std::sync::{Mutex, Once, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_util::future::select;
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{AssertSqlSafe, Executor, MySqlPool, PgPool, SqlSafeStr, SqlitePool};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::instrument::{Instrument, WithSubscriber};
use tracing::{Subscriber, error_span};
use tracing_subscriber::layer::{self, Layer, SubscriberExt};

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("clean_postgres_session_after_a_hang_up", |url| {
                with_runtime(0, postgres_session(url))
            }),
            ("clean_postgres_after_a_copy_that_is_cut", |url| with_runtime(0, postgres_copy(url))),
            ("clean_postgres_transaction_dropped_midway", |url| {
                with_runtime(0, postgres_midway(url))
            }),
            ("clean_postgres_without_a_storm_of_new_sessions", |url| with_runtime(2, storm(url))),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("clean_mariadb_session_after_a_hang_up", |url| with_runtime(0, mariadb_session(url))),
            ("clean_mariadb_transaction_dropped_midway", |url| {
                with_runtime(0, mariadb_midway(url))
            }),
            ("clean_mariadb_prepare_dropped_midway", |url| with_runtime(0, mariadb_prepare(url))),
            ("clean_mariadb_connection_used_on_after_a_drop", |url| {
                with_runtime(0, mariadb_used_on(url));
            }),
        ],
    );
    suite.without_server(&[
        ("clean_sqlite_in_memory_after_a_hang_up", || with_runtime(0, sqlite_session())),
        ("clean_sqlite_whose_thread_panics", || with_runtime(0, sqlite_panics())),
        ("clean_sqlite_transaction_dropped_midway", || with_runtime(0, sqlite_midway())),
    ]);
}

/// Longer than any cleaning takes, or a new connection, on the slowest machine.
const LONG: Duration = Duration::from_secs(10);

/// How long a connection is cleaned before it is closed.
const PATIENCE: Duration = Duration::from_millis(25);

/// Work on this pool that hangs up once it has executed these and waits for something else.
macro_rules! hang_up_after {
    ($pool:expr, $statements:expr) => {{
        let reached = Notify::new();
        let work = async {
            let mut connection = $pool.acquire().await.expect("acquires");
            for statement in $statements {
                // Some are meant to fail.
                drop(sqlx::raw_sql(*statement).execute(&mut *connection).await);
            }
            reached.notify_one();
            pending::<()>().await;
        };
        let work = pin!(work.budgeted("work", Budget::new()));
        select(work, pin!(reached.notified())).await;
    }};
}

async fn postgres_session(url: &str) {
    // Text by text: what is left, or nothing; and whether the session may be the same one
    // afterwards.
    const LEFT: &str = "SELECT concat_ws(' ', \
        (SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() \
        LIMIT 1), \
        (SELECT 'temporary' FROM pg_class WHERE relnamespace = pg_my_temp_schema() LIMIT 1), \
        (SELECT 'channel' FROM pg_listening_channels() LIMIT 1), \
        (SELECT 'cursor' FROM pg_cursors WHERE is_holdable LIMIT 1), \
        (SELECT 'prepared' FROM pg_prepared_statements WHERE from_sql LIMIT 1), \
        nullif(current_setting('statement_timeout'), '0'), \
        nullif(current_setting('a.b', true), ''), \
        nullif(current_setting('role'), 'none'))";
    const CASES: [(&[&str], bool); 14] = [
        (&["SELECT 1"], true),
        (&["SELECT pg_advisory_lock(711)"], true),
        (&["BEGIN", "INSERT INTO clean_session VALUES (1)"], true),
        (&["BEGIN", "SELECT nonsense"], true),
        (&["BEGIN", "CREATE TEMP TABLE t (a INT)", "SET LOCAL statement_timeout = 7"], true),
        (&["SELECT set_config('a.b', 'x', true)"], true),
        (&["CREATE TEMP TABLE t (a INT)"], false),
        (&["SET statement_timeout = 12345"], false),
        (&["/* as */ SET ROLE pg_monitor"], false),
        (&["SELECT set_config('a.b', 'x', false)"], false),
        (&["DO $$ BEGIN PERFORM set_config('a.b', 'x', false); END $$"], false),
        (&["LISTEN news"], false),
        (&["DECLARE c CURSOR WITH HOLD FOR SELECT 1"], false),
        (&["PREPARE p AS SELECT 1"], false),
    ];
    let admin = PgPool::connect(url).await.expect("connects");
    let make = "DROP TABLE IF EXISTS clean_session; CREATE TABLE clean_session (a INT)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    let pool = Pool::from(plain.clone());
    for (statements, is_kept) in CASES {
        let session = "SELECT pg_backend_pid()";
        let before: i32 = sqlx::query_scalar(session).fetch_one(&plain).await.expect("fetches");
        hang_up_after!(pool, statements);
        let since = Instant::now();
        let left: String = sqlx::query_scalar(LEFT).fetch_one(&plain).await.expect("fetches");
        let waited = since.elapsed();
        assert!(waited < LONG, "{statements:?}: {waited:?}");
        assert_eq!(left, "", "{statements:?}");
        let after: i32 = sqlx::query_scalar(session).fetch_one(&plain).await.expect("fetches");
        // Where the machine is so busy that the cleaning takes longer, it is closed after all.
        let is_overdue = is_kept && waited >= PATIENCE;
        assert!((before == after) == is_kept || is_overdue, "{statements:?}, after {waited:?}");
        let lock = "SET lock_timeout = '5s'; LOCK TABLE clean_session; RESET lock_timeout";
        sqlx::raw_sql(lock).execute(&admin).await.expect("nobody has it locked");
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM clean_session")
            .fetch_one(&admin)
            .await
            .expect("fetches");
        assert_eq!(rows, 0, "{statements:?}");
    }
}

async fn postgres_copy(url: &str) {
    let admin = PgPool::connect(url).await.expect("connects");
    let make = "DROP TABLE IF EXISTS clean_copy; CREATE TABLE clean_copy (a INT)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a connection string");
    let options = options.application_name("clean_copy");
    let plain = PgPoolOptions::new().max_connections(1).connect_with(options).await;
    let plain = plain.expect("connects");
    let copying = async || {
        let copying = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
                       AND query LIKE 'COPY%' AND application_name = 'clean_copy'";
        sqlx::query_scalar::<_, i64>(copying).fetch_one(&admin).await.expect("counts")
    };
    let pool = Pool::from(plain.clone());
    for is_in in [true, false] {
        let reached = Notify::new();
        let work = async {
            let mut connection = pool.acquire().await.expect("acquires");
            let raw = connection.unmetered();
            if is_in {
                let copy = raw.copy_in_raw("COPY clean_copy FROM STDIN").await;
                let mut copy = copy.expect("copies");
                copy.send(&b"1\n2\n"[..]).await.expect("sends");
                reached.notify_one();
                pending::<()>().await;
            } else {
                let rows = "COPY (SELECT generate_series(1, 100000000)) TO STDOUT";
                let mut copy = raw.copy_out_raw(rows).await.expect("copies");
                futures_util::TryStreamExt::try_next(&mut copy).await.expect("receives");
                reached.notify_one();
                pending::<()>().await;
            }
        };
        {
            let work = pin!(work.budgeted("copy", Budget::new()));
            select(work, pin!(reached.notified())).await;
            assert_eq!(copying().await, 1, "it is cut in the middle");
        }
        // Its place in the pool is free before anything else happens: nothing is waited for.
        assert_eq!(plain.size(), 0);
        let since = Instant::now();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM clean_copy")
            .fetch_one(&plain)
            .await
            .expect("fetches");
        assert_eq!(rows, 0);
        assert!(since.elapsed() < LONG, "{:?}", since.elapsed());
        while copying().await > 0 {
            assert!(since.elapsed() < LONG, "the server goes on with it");
        }
    }
}

/// Clients that hang up in the middle of a short statement cost hardly any new session.
async fn storm(url: &str) {
    let admin = PgPool::connect(url).await.expect("connects");
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a connection string");
    let options = options.application_name("clean_storm");
    let pool = Pool::from(
        PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("connects"),
    );
    let sessions = async || {
        let pid = "SELECT pg_backend_pid()";
        sqlx::query_scalar::<_, i32>(pid).fetch_one(pool.unmetered()).await.expect("fetches")
    };
    let mut kept = 0;
    for _ in 0..50 {
        let before = sessions().await;
        let started = async || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
                           AND application_name = 'clean_storm'";
            while sqlx::query_scalar::<_, i64>(running).fetch_one(&admin).await.expect("counts")
                == 0
            {}
        };
        {
            let work = sqlx::query("SELECT pg_sleep(0.005)").execute(&pool);
            let work = pin!(work.budgeted("work", Budget::new()));
            let mut started = pin!(started());
            // Hangs up as soon as the server is seen to work on it; or it is done by then.
            drop(select(work, started.as_mut()).await);
        }
        kept += usize::from(before == sessions().await);
    }
    assert!(kept > 25, "{kept} of 50 sessions were kept");
}

async fn mariadb_session(url: &str) {
    const CASES: [(&[&str], bool); 9] = [
        (&["SELECT 1"], true),
        (&["SELECT GET_LOCK('clean', 1)"], true),
        (&["BEGIN", "INSERT INTO clean_session VALUES (1)"], true),
        (&["LOCK TABLES clean_session WRITE"], true),
        (&["SET @left = 1"], false),
        (&["SET SESSION max_statement_time = 7"], false),
        (&["CREATE TEMPORARY TABLE clean_session (b INT)"], false),
        (&["SELECT 1 INTO @left"], false),
        (&["USE mysql"], false),
    ];
    let admin = MySqlPool::connect(url).await.expect("connects");
    let make = "DROP DATABASE IF EXISTS budget_clean; CREATE DATABASE budget_clean; \
                CREATE TABLE budget_clean.clean_session (a INT)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
    let options = options.database("budget_clean");
    let options = MySqlPoolOptions::new().max_connections(1).connect_with(options);
    let plain = options.await.expect("connects");
    let pool = Pool::from(plain.clone());
    for (statements, is_kept) in CASES {
        let session = "SELECT connection_id()";
        let before: u64 = sqlx::query_scalar(session).fetch_one(&plain).await.expect("fetches");
        hang_up_after!(pool, statements);
        let since = Instant::now();
        let left = "SELECT CAST(concat_ws(' ', @left, nullif(@@max_statement_time, 0), \
                    nullif(database(), 'budget_clean'), nullif(IS_FREE_LOCK('clean'), 1)) AS CHAR)";
        let left: String = sqlx::query_scalar(left).fetch_one(&plain).await.expect("fetches");
        let waited = since.elapsed();
        assert!(waited < LONG, "{statements:?}: {waited:?}");
        assert_eq!(left, "", "{statements:?}");
        let after: u64 = sqlx::query_scalar(session).fetch_one(&plain).await.expect("fetches");
        // Where the machine is so busy that the cleaning takes longer, it is closed after all.
        let is_overdue = is_kept && waited >= PATIENCE;
        assert!((before == after) == is_kept || is_overdue, "{statements:?}, after {waited:?}");
        sqlx::query("SELECT a FROM clean_session").fetch_all(&plain).await.expect("no temporary");
        let locked = "LOCK TABLES budget_clean.clean_session WRITE WAIT 5; UNLOCK TABLES";
        sqlx::raw_sql(locked).execute(&admin).await.expect("nobody has it locked");
        let rows = "SELECT count(*) FROM budget_clean.clean_session";
        let rows: i64 = sqlx::query_scalar(rows).fetch_one(&admin).await.expect("counts");
        assert_eq!(rows, 0, "{statements:?}");
    }
}

async fn sqlite_session() {
    let plain = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect("sqlite::memory:")
        .await
        .expect("connects");
    plain.execute("CREATE TABLE kept (a INT); INSERT INTO kept VALUES (1)").await.expect("fills");
    let pool = Pool::from(plain.clone());
    let cases: [&[&str]; 5] = [
        &["SELECT 1"],
        &["BEGIN IMMEDIATE", "INSERT INTO kept VALUES (2)"],
        &["CREATE TEMP TABLE t (a INT)", "CREATE TEMP VIEW v AS SELECT 1"],
        &["PRAGMA temp_store = 2", "CREATE TEMPORARY TABLE t (a INT)"],
        &["ATTACH DATABASE ':memory:' AS \"other one\""],
    ];
    for statements in cases {
        hang_up_after!(pool, statements);
        let left = "SELECT (SELECT count(*) FROM sqlite_temp_schema) + \
                    (SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp'))";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&plain).await.expect("fetches");
        assert_eq!(left, 0, "{statements:?}");
        let rows: Vec<i64> =
            sqlx::query_scalar("SELECT a FROM kept").fetch_all(&plain).await.expect("is there");
        assert_eq!(rows, [1], "{statements:?}");
        plain.execute("BEGIN IMMEDIATE; ROLLBACK").await.expect("no transaction is open");
    }
}

/// Polls a future at most so often, and lets the server answer in between. Panics where a span is
/// entered by the driver's thread, which runs commands in the span they were sent in, as soon as
/// this is allowed.
struct PanicsInDriver(Mutex<mpsc::Receiver<()>>);

impl<S: Subscriber> Layer<S> for PanicsInDriver {
    fn on_enter(&self, _: &tracing::Id, _: layer::Context<'_, S>) {
        if thread::current().name().is_some_and(|name| name.starts_with("sqlx-sqlite-worker")) {
            let _ = self.0.lock().expect("not poisoned").recv();
            // Says nothing on stderr, as `panic!` would.
            panic::resume_unwind(Box::new("on purpose"));
        }
    }
}

/// The driver never answers a command that is queued when its thread panics.
async fn sqlite_panics() {
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(LONG);
    let pool = Pool::from(pool.connect("sqlite::memory:").await.expect("connects"));
    let (allow, allowed) = mpsc::channel();
    let subscriber = tracing_subscriber::registry().with(PanicsInDriver(Mutex::new(allowed)));
    let reached = Notify::new();
    let statement = async {
        let mut connection = pool.acquire().await.expect("acquires");
        let statement = async {
            let statement = connection.execute("SELECT 1");
            drop(statement.instrument(error_span!("panics")).await);
        };
        let mut statement = pin!(statement.with_subscriber(subscriber));
        poll_fn(|cx| {
            assert!(statement.as_mut().poll(cx).is_pending(), "not answered before it may be");
            Poll::Ready(())
        })
        .await;
        reached.notify_one();
        statement.await;
    };
    {
        let work = pin!(statement.budgeted("work", Budget::new()));
        select(work, pin!(reached.notified())).await;
    }
    // The cleaning begins here, and queues its first command.
    for _ in 0..3 {
        yield_now().await;
    }
    allow.send(()).expect("the driver waits");
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await.expect("fetches");
    assert_eq!(one, 1, "on a connection that replaces it");
}

async fn at_most<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        for _ in 0..3 {
            yield_now().await;
        }
    }
    None
}

/// What begins, commits or rolls back and is dropped midway, at the top and as a savepoint: what
/// was acknowledged lasts, and what was not does not.
macro_rules! midway {
    ($pool:expr, $rows:expr) => {{
        let (pool, rows) = ($pool, $rows);
        for polls in 1..5_u32 {
            // At the top; then on the same connection, then on the pool's next.
            pool.execute("DELETE FROM midway").await.expect("empties");
            let mut connection = pool.acquire().await.expect("acquires");
            drop(at_most(polls, connection.begin()).await);
            connection.execute("INSERT INTO midway VALUES (1)").await.expect("inserts");
            drop(at_most(polls, connection.begin()).await);
            drop(connection);
            pool.execute("INSERT INTO midway VALUES (2)").await.expect("inserts");
            assert_eq!(rows().await, [1, 2], "{polls} polls");

            for act in ["begin", "commit", "rollback", "nested"] {
                pool.execute("DELETE FROM midway").await.expect("empties");
                let mut outer = pool.begin().await.expect("begins");
                let mut expected = vec![1];
                outer.execute("INSERT INTO midway VALUES (1)").await.expect("inserts");
                match act {
                    "begin" => drop(at_most(polls, outer.begin()).await),
                    "nested" => {
                        let mut inner = outer.begin().await.expect("begins");
                        drop(at_most(polls, inner.begin()).await);
                        if inner.execute("INSERT INTO midway VALUES (2)").await.is_ok()
                            && inner.commit().await.is_ok()
                        {
                            expected.push(2);
                        }
                    }
                    end => {
                        let mut inner = outer.begin().await.expect("begins");
                        inner.execute("INSERT INTO midway VALUES (2)").await.expect("inserts");
                        if end == "commit" {
                            if let Some(Ok(())) = at_most(polls, inner.commit()).await {
                                expected.push(2);
                            }
                        } else {
                            drop(at_most(polls, inner.rollback()).await);
                        }
                    }
                }
                if outer.execute("INSERT INTO midway VALUES (3)").await.is_ok() {
                    expected.push(3);
                }
                let committed = outer.commit().await;
                pool.execute("INSERT INTO midway VALUES (4)").await.expect("inserts");
                let seen = rows().await;
                if committed.is_ok() {
                    expected.push(4);
                    // Nobody knows of a commit that was dropped midway.
                    let seen: Vec<_> = seen
                        .into_iter()
                        .filter(|row| act != "commit" || *row != 2 || expected.contains(&2))
                        .collect();
                    assert_eq!(seen, expected, "{act} after {polls} polls");
                } else {
                    assert_eq!(seen, [4], "{act} after {polls} polls");
                }
            }
        }
    }};
}

async fn postgres_midway(url: &str) {
    let admin = PgPool::connect(url).await.expect("connects");
    let make = "DROP TABLE IF EXISTS midway; CREATE TABLE midway (a BIGINT)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = Pool::from(pool.connect(url).await.expect("connects"));
    midway!(pool, async || {
        let rows = sqlx::query_scalar::<_, i64>("SELECT a FROM midway ORDER BY a");
        rows.fetch_all(&admin).await.expect("fetches")
    });
}

async fn mariadb_midway(url: &str) {
    let admin = MySqlPool::connect(url).await.expect("connects");
    let make = "DROP DATABASE IF EXISTS budget_midway; CREATE DATABASE budget_midway; \
                CREATE TABLE budget_midway.midway (a BIGINT)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
    let options = options.database("budget_midway");
    let pool = MySqlPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = Pool::from(pool.connect_with(options).await.expect("connects"));
    midway!(pool, async || {
        let rows = sqlx::query_scalar::<_, i64>("SELECT a FROM budget_midway.midway ORDER BY a");
        rows.fetch_all(&admin).await.expect("fetches")
    });
}

async fn sqlite_midway() {
    let admin = SqlitePool::connect("sqlite:file:midway?mode=memory&cache=shared");
    let admin = admin.await.expect("connects");
    admin.execute("CREATE TABLE midway (a INTEGER)").await.expect("makes a table");
    let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = pool.connect("sqlite:file:midway?mode=memory&cache=shared").await;
    let pool = Pool::from(pool.expect("connects"));
    midway!(pool, async || {
        let rows = sqlx::query_scalar::<_, i64>("SELECT a FROM midway ORDER BY a");
        rows.fetch_all(&admin).await.expect("fetches")
    });
}

thread_local! {
    /// How many panics there were on this thread, those included that the runtime catches in tasks.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// A statement that is dropped after so many polls, the one in which the driver prepares it among
/// them: by work that hangs up, or by the work itself.
async fn mariadb_prepare(url: &str) {
    count_panics();
    let options = MySqlPoolOptions::new().max_connections(1).test_before_acquire(false);
    let plain = options.connect(url).await.expect("connects");
    let pool = Pool::from(plain.clone());
    let mut texts = 0..;
    let (mut number, mut longest) = (0_i64, Duration::ZERO);
    for (parameters, columns) in [(0, 1), (0, 4), (1, 3), (3, 1), (4, 6), (2, 0), (0, 0)] {
        for polls in 1..=4 {
            for (is_hang_up, is_executed) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                // Each text is new to the connection, so that it is prepared.
                let text = texts.next().expect("enough of them");
                let text = text_with(parameters, columns, text);
                let what = format!("{text}: {polls} polls, {is_hang_up} {is_executed}");
                let mut connection = pool.acquire().await.expect("acquires");
                let dropped = async {
                    let connection = &mut *connection;
                    let text = AssertSqlSafe(text).into_sql_str();
                    if is_executed {
                        let query = sqlx::query(text);
                        let query = (0..parameters).fold(query, |query, _| query.bind(1));
                        drop(query.execute(connection).await);
                    } else {
                        drop(connection.prepare(text).await);
                    }
                    pending::<()>().await;
                };
                if is_hang_up {
                    drop(at_most(polls, dropped.budgeted("work", Budget::new())).await);
                } else {
                    let work = async { at_most(polls, dropped).await };
                    work.budgeted("work", Budget::new()).await.expect("is not cut");
                }
                let since = Instant::now();
                drop(connection);
                number += 1;
                let answer = sqlx::query_scalar::<_, i64>("SELECT CAST(? AS SIGNED)").bind(number);
                let answer = answer.fetch_one(&plain).await.expect("fetches");
                longest = longest.max(since.elapsed());
                assert_eq!(answer, number, "{what}");
                assert_eq!(PANICS.get(), 0, "{what}");
            }
        }
    }
    assert!(longest < LONG, "{longest:?}");
}

/// What the work itself drops midway does not change what it executes next on the same connection.
async fn mariadb_used_on(url: &str) {
    count_panics();
    let admin = MySqlPool::connect(url).await.expect("connects");
    let make = "CREATE DATABASE IF NOT EXISTS budget_clean; DROP TABLE IF EXISTS \
        budget_clean.used_on; CREATE TABLE budget_clean.used_on (number BIGINT PRIMARY KEY)";
    sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
    let options = MySqlPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = Pool::from(options.connect(url).await.expect("connects"));
    let (mut texts, mut number, mut refused) = (1_000_000.., 0_i64, 0);
    for (parameters, columns) in [(0, 1), (0, 4), (1, 3), (3, 1), (4, 6), (2, 0), (0, 0)] {
        for (polls, way) in (1..=4).flat_map(|polls| (0..4).map(move |way| (polls, way))) {
            let text = text_with(parameters, columns, texts.next().expect("enough of them"));
            let what = format!("{text}: {polls} polls, way {way}");
            number += 1;
            let work = async {
                let mut tx = pool.begin().await.expect("begins");
                insert(&mut tx, number).await.expect("inserts");
                let dropped = async {
                    let query = sqlx::query(AssertSqlSafe(text));
                    let query = (0..parameters).fold(query, |query, _| query.bind(1));
                    match way {
                        0 => drop(query.execute(&mut *tx).await),
                        1 => drop(query.fetch_optional(&mut *tx).await),
                        2 => drop(query.fetch_all(&mut *tx).await),
                        _ => drop(tx.ping().await),
                    }
                    pending::<()>().await;
                };
                at_most(polls, dropped).await;
                let answer = sqlx::query_scalar::<_, i64>("SELECT CAST(? AS SIGNED)").bind(number);
                assert_eq!(answer.fetch_one(&mut *tx).await?, number, "{what}");
                tx.commit().await
            };
            let done = work.budgeted("work", Budget::new()).await.expect("is not cut");
            if let Err(error) = &done {
                assert!(error.to_string().contains("use another connection"), "{what}: {error}");
                refused += 1;
            }
            let rows = sqlx::query_scalar::<_, i64>(
                "SELECT count(*) FROM budget_clean.used_on WHERE number = ?",
            );
            let rows = rows.bind(number).fetch_one(&admin).await.expect("counts");
            assert_eq!(rows, i64::from(done.is_ok()), "{what}: {done:?}");
            let next = sqlx::query_scalar::<_, i64>("SELECT CAST(? AS SIGNED)").bind(number);
            assert_eq!(next.fetch_one(pool.unmetered()).await.expect("fetches"), number, "{what}");
            assert_eq!(PANICS.get(), 0, "{what}");
        }
    }
    // Some are known to be out of step; where all that is left can be read, the work goes on.
    assert!((1..number).contains(&refused), "{refused} of {number}");
}

async fn insert(
    connection: &mut request_budget::sqlx::Connection<sqlx::MySql>,
    number: i64,
) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO budget_clean.used_on VALUES (?)").bind(number);
    insert.execute(connection).await.map(drop)
}

/// A text with so many parameters that returns so many columns, or nothing.
fn text_with(parameters: usize, columns: usize, number: u32) -> String {
    let places = vec!["?"; parameters].join(" + ");
    match (parameters, columns) {
        (0, 0) => format!("DO {number}"),
        (_, 0) => format!("DO {number} + {places}"),
        _ => {
            let first = if parameters == 0 { "0" } else { &places };
            let rest = format!(", {number}").repeat(columns - 1);
            format!("SELECT {first} + {number}{rest}")
        }
    }
}
