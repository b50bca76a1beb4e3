//! MariaDB: the count against the server's general log.

use std::sync::{Mutex, PoisonError};

use proptest::test_runner::{Config, TestRunner};
use request_budget::{Budget, BudgetExt as _};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{MySql, MySqlPool};

use crate::sql::{Dialect, programs, programs_on, usage_of};
use crate::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("mariadb_counts_what_the_server_logs_on_one_thread", |url| equal(url, 0)),
            ("mariadb_counts_what_the_server_logs_on_two_threads", |url| equal(url, 2)),
            ("mariadb_takes_the_query_macros", macros),
            ("mariadb_connection_killed_in_mid_request_gives_the_error_of_the_driver", killed),
            ("mariadb_statement_past_a_hard_limit_never_reaches_the_server", refused),
        ],
    );
}

pub(crate) const DIALECT: Dialect = Dialect {
    create: "CREATE TABLE budget_items (id INT PRIMARY KEY, hits INT NOT NULL DEFAULT 0)",
    insert: "INSERT INTO budget_items (id) VALUES (?)",
    one: "SELECT id FROM budget_items WHERE id = ?",
    failed_execution_is_seen_as: 1,
    // The log has one entry for what was sent at once.
    batch_is_seen_as: 1,
    batch: "UPDATE budget_items SET hits = 1; SELECT count(*) FROM budget_items",
};

programs_on!(MySql, DIALECT);

/// A pool on a database of its own, made anew: tests run side by side.
pub(crate) async fn pool(url: &str, database: &'static str) -> Pool<MySql> {
    let admin = MySqlPool::connect(url).await.expect("the server is there");
    for statement in ["DROP DATABASE IF EXISTS", "CREATE DATABASE"] {
        let statement = sqlx::AssertSqlSafe(format!("{statement} {database}"));
        sqlx::raw_sql(statement).execute(&admin).await.expect("makes a database");
    }
    sqlx::raw_sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = 'ON'")
        .execute(&admin)
        .await
        .expect("the user may log");
    let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
    let options = options.database(database);
    let pool = MySqlPoolOptions::new().max_connections(3).connect_with(options).await;
    let pool = Pool::from(pool.expect("connects"));
    make_table(&pool).await;
    pool
}

/// The log is one table for all, read whole each time: whoever counts by it empties it first.
pub(crate) static LOG: Mutex<()> = Mutex::new(());

/// Empties the log; to be called with [`LOG`] held.
pub(crate) async fn new_log(pool: &Pool<MySql>) {
    let raw = pool.unmetered();
    sqlx::raw_sql("TRUNCATE mysql.general_log").execute(raw).await.expect("empties the log");
}

/// How many statements on our table the connections of this pool have sent for execution, by the
/// log.
pub(crate) async fn logged(pool: &Pool<MySql>) -> u64 {
    let mut ids = Vec::new();
    let mut all = Vec::new();
    for _ in 0..3 {
        // Each answers, so what it was sent before is over.
        let mut connection = pool.unmetered().acquire().await.expect("acquires");
        let id = sqlx::query_scalar::<_, u64>("SELECT connection_id()")
            .fetch_one(&mut *connection)
            .await;
        ids.push(id.expect("fetches").to_string());
        all.push(connection);
    }
    let statement = format!(
        "SELECT count(*) FROM mysql.general_log WHERE thread_id IN ({})
         AND command_type IN ('Execute', 'Query') AND argument LIKE '%budget\\_items%'
         AND argument NOT LIKE 'DELETE%' AND argument NOT LIKE '%general_log%'",
        ids.join(", ")
    );
    let count =
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(statement)).fetch_one(&mut *all[0]);
    count.await.expect("counts").cast_unsigned()
}

fn equal(url: &str, workers: usize) {
    let _log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime(workers);
    let name = if workers == 0 { "budget_one" } else { "budget_two" };
    let pool = runtime.block_on(pool(url, name));
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&programs(), |program| {
        runtime.block_on(async {
            new_log(&pool).await;
            equal_the_server(&pool, &program, async || logged(&pool).await).await
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn macros(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "budget_macros").await;
        let usage = usage_of(async {
            // Checked by the compiler against the data in `.sqlx`.
            let sum = sqlx::query!("SELECT ? + 1 AS `sum!: i64`", 41_i64).fetch_one(&pool).await;
            assert_eq!(sum.expect("fetches").sum, 42);
            let mut transaction = pool.begin().await.expect("begins");
            let one =
                sqlx::query_scalar!("SELECT 1 AS `one!: i64`").fetch_one(&mut *transaction).await;
            assert_eq!(one.expect("fetches"), 1);
        })
        .await;
        assert_eq!((usage.queries, usage.rows, usage.transactions), (2, 2, 1));
    });
}

fn killed(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "budget_killed").await;
        let usage = usage_of(async {
            let mut connection = pool.acquire().await.expect("acquires");
            let id = sqlx::query_scalar::<_, u64>("SELECT connection_id()");
            let id = id.fetch_one(&mut *connection).await.expect("fetches");
            let kill = sqlx::AssertSqlSafe(format!("KILL {id}"));
            sqlx::query(kill).execute(pool.unmetered()).await.expect("kills");
            let error = sqlx::query(sql::ALL).fetch_all(&mut *connection).await;
            assert!(
                matches!(error, Err(sqlx::Error::Database(_) | sqlx::Error::Io(_))),
                "{error:?}"
            );
        })
        .await;
        assert_eq!(usage.queries, 2);
        let next = usage_of(async {
            sqlx::query(sql::ALL).fetch_all(&pool).await.expect("fetches");
        });
        let next = next.await;
        assert_eq!((next.queries, next.rows), (1, 20), "nothing leaks into the next");
    });
}

fn refused(url: &str) {
    let _log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    with_runtime(0, async {
        let pool = pool(url, "budget_refused").await;
        new_log(&pool).await;
        let before = logged(&pool).await;
        let work = async {
            loop {
                sqlx::query(DIALECT.one).bind(1).fetch_one(&pool).await?;
            }
            #[expect(unreachable_code, reason = "names the type of the error")]
            Ok::<(), sqlx::Error>(())
        };
        let limit = request_budget::Limit::hard(3);
        let cut = work.budgeted("loop", Budget::new().queries(limit)).await.expect_err("is cut");
        assert!(cut.to_string().starts_with("loop was cut: 4 queries, limit 3"), "{cut}");
        assert_eq!(logged(&pool).await - before, 3);
    });
}
