//! PostgreSQL: the count against `pg_stat_statements`.

use std::time::Duration;

use proptest::test_runner::{Config, TestRunner};
use request_budget::sqlx::BorrowedConnection;
use request_budget::{Budget, BudgetExt, Cut, Usage};
use sqlx::postgres::{
    PgAdvisoryLock, PgConnectOptions, PgExecutor, PgListener, PgPoolOptions, PgSslMode,
};
use sqlx::{Acquire, PgPool, Postgres, QueryBuilder, Row, SqlSafeStr};

use crate::sql::{Dialect, programs, programs_on, usage_of};
use crate::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("postgres_counts_what_the_server_executes_on_one_thread", |url| equal(url, 0)),
            ("postgres_counts_what_the_server_executes_on_two_threads", |url| equal(url, 2)),
            ("postgres_takes_every_kind_of_query", every_kind),
            ("postgres_statement_past_a_hard_limit_never_reaches_the_server", refused),
            ("postgres_wait_for_a_connection_is_no_query_time", connection_wait),
            ("postgres_cancelled_statement_is_counted_once", cancelled),
            ("postgres_statement_in_flight_at_the_end_is_counted_once", in_flight),
            ("postgres_connection_killed_in_mid_request_gives_the_error_of_the_driver", killed),
            ("postgres_errors_are_those_of_the_driver", errors_unchanged),
            ("postgres_any_driver_is_counted", any_driver),
            ("postgres_advisory_lock_takes_a_metered_connection", advisory_lock),
            ("postgres_borrowed_connection_is_counted_and_stays_its_owner_s", borrowed),
            ("postgres_listen_and_migrations_go_by_the_unmetered_pool", unmetered_uses),
        ],
    );
    suite.with_server(
        "DATABASE_URL",
        &[("postgres_pool_that_sqlx_hands_to_a_test_is_counted_once_wrapped", handed_by_sqlx)],
    );
}

/// What `#[sqlx::test]` makes of a function, in a suite of tests that it does not know.
fn handed_by_sqlx(url: &str) {
    use sqlx::testing::{TestArgs, TestFn};

    async fn test(pool: PgPool) {
        let pool = Pool::from(pool);
        let usage = usage_of(async {
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
        });
        assert_eq!(usage.await.queries, 1);
    }

    assert!(url.starts_with("postgres"), "DATABASE_URL names another server");
    TestFn::run_test(test as fn(PgPool) -> _, TestArgs::new("handed_by_sqlx"));
}

pub(crate) const DIALECT: Dialect = Dialect {
    create: "CREATE TABLE budget_items (id INT PRIMARY KEY, hits INT NOT NULL DEFAULT 0)",
    insert: "INSERT INTO budget_items (id) VALUES ($1)",
    one: "SELECT id FROM budget_items WHERE id = $1",
    failed_execution_is_seen_as: 0,
    batch_is_seen_as: 2,
    batch: "UPDATE budget_items SET hits = 1; SELECT count(*) FROM budget_items",
};

programs_on!(Postgres, DIALECT);

/// A pool on a schema of its own: tests run side by side.
async fn pool(url: &str, schema: &'static str, connections: u32) -> Pool<Postgres> {
    let options: PgConnectOptions = url.parse().expect("the variable holds a connection string");
    let options = options.options([("search_path", schema)]);
    let pool = PgPoolOptions::new().max_connections(connections).connect_with(options).await;
    let pool = pool.expect("the server is there");
    for statement in ["DROP SCHEMA IF EXISTS", "CREATE SCHEMA"] {
        let statement = format!(
            "{statement} {schema} {}",
            if statement.starts_with('D') { "CASCADE" } else { "" }
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pool).await.expect("makes a schema");
    }
    let pool = Pool::from(pool);
    make_table(&pool).await;
    pool
}

/// A pool on a database of its own, since the statistics of the server are kept by database; and
/// one to ask for them.
pub(crate) async fn database(url: &str, name: &'static str) -> (Pool<Postgres>, PgPool) {
    let admin = PgPool::connect(url).await.expect("the server is there");
    sqlx::query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").execute(&admin).await.ok();
    for statement in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")]
    {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&admin)
            .await
            .expect("makes a database");
    }
    let options: PgConnectOptions = url.parse().expect("a connection string");
    let options = options.database(name);
    let pool =
        PgPoolOptions::new().max_connections(3).connect_with(options).await.expect("connects");
    let pool = Pool::from(pool);
    make_table(&pool).await;
    (pool, admin)
}

/// How many statements on our table the server has executed in this database, by its own
/// statistics.
pub(crate) async fn executed(pool: &Pool<Postgres>, witness: &PgPool, name: &str) -> u64 {
    // Whatever is still on its way to the server, or back, is over once every connection answers.
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut connection = pool.unmetered().acquire().await.expect("acquires");
        sqlx::Connection::ping(&mut *connection).await.expect("answers");
        all.push(connection);
    }
    let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements AS seen
        JOIN pg_database ON pg_database.oid = seen.dbid
        WHERE datname = $1 AND query LIKE '%budget_items%' AND query NOT LIKE 'DELETE%'";
    let calls = sqlx::query_scalar::<_, i64>(calls).bind(name).fetch_one(witness).await;
    calls.expect("counts").cast_unsigned()
}

fn equal(url: &str, workers: usize) {
    let runtime = runtime(workers);
    let name = if workers == 0 { "budget_one" } else { "budget_two" };
    let (pool, witness) = runtime.block_on(database(url, name));
    let executed = async || executed(&pool, &witness, name).await;
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config)
        .run(&programs(), |program| runtime.block_on(equal_the_server(&pool, &program, &executed)));
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// What a library writes that takes any executor.
/// What runs on the guard runs on sqlx's connection, and is not counted; what runs on ours is.
fn advisory_lock(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "advisory_lock", 2).await;
        let lock = PgAdvisoryLock::new("advisory_lock");
        let usage = usage_of(async {
            let connection = pool.acquire().await.expect("connects");
            let mut guard = lock.acquire(connection).await.expect("locks");
            let is_held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                           AND pid = pg_backend_pid()";
            let held = sqlx::query_scalar::<_, i64>(is_held).fetch_one(&mut *guard).await;
            assert_eq!(held.expect("executes"), 1);
            let mut connection = guard.release_now().await.expect("unlocks");
            let held = sqlx::query_scalar::<_, i64>(is_held).fetch_one(connection.as_mut()).await;
            assert_eq!(held.expect("executes"), 0);
        });
        assert_eq!(usage.await.queries, 1);
    });
}

async fn count(executor: impl PgExecutor<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM budget_items").fetch_one(executor).await
}

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Item {
    id: i32,
    hits: i32,
}

fn every_kind(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "every_kind", 2).await;
        let usage = usage_of(async {
            // 1..=3: an executor of each sort
            assert_eq!(count(&pool).await.expect("counts"), 20);
            let mut connection = pool.acquire().await.expect("acquires");
            assert_eq!(count(&mut *connection).await.expect("counts"), 20);
            drop(connection);
            let mut transaction = pool.begin_with("BEGIN READ ONLY").await.expect("begins");
            assert_eq!(count(&mut *transaction).await.expect("counts"), 20);
            transaction.commit().await.expect("commits");
            // 4, 5: typed
            let item = sqlx::query_as::<_, Item>("SELECT id, hits FROM budget_items WHERE id = $1");
            let item = item.bind(7).fetch_one(&pool).await.expect("fetches");
            assert_eq!(item, Item { id: 7, hits: 0 });
            let mapped = sqlx::query(DIALECT.one)
                .bind(3)
                .map(|row: sqlx::postgres::PgRow| row.get::<i32, _>(0));
            assert_eq!(mapped.fetch_one(&pool).await.expect("fetches"), 3);
            // 6: checked by the compiler against the data in `.sqlx`
            let one = sqlx::query!(r#"SELECT 1 AS "one!", $1::text AS "text!""#, "t");
            let one = one.fetch_one(&pool).await.expect("fetches");
            assert_eq!((one.one, &*one.text), (1, "t"));
            // 7: built
            let mut builder =
                QueryBuilder::<Postgres>::new("SELECT id FROM budget_items WHERE id IN (");
            let mut ids = builder.separated(", ");
            for id in [1, 2, 3] {
                ids.push_bind(id);
            }
            builder.push(")");
            assert_eq!(builder.build().fetch_all(&pool).await.expect("fetches").len(), 3);
            // 8, 9: a batch of two, as two
            let results = sqlx::raw_sql(DIALECT.batch).fetch_many(&pool);
            assert_eq!(results.try_collect::<Vec<_>>().await.expect("runs").len(), 3);
            // 10: a prepared statement
            let mut connection = loop {
                // A connection finds its way back to the pool in a task of its own.
                tokio::task::yield_now().await;
                if let Some(connection) = pool.try_acquire() {
                    break connection;
                }
            };
            let prepared = (&mut *connection).prepare(sqlx::SqlStr::from_static(DIALECT.one)).await;
            let prepared = prepared.expect("prepares");
            let rows =
                sqlx::Statement::query(&prepared).bind(1_i32).fetch_all(&mut *connection).await;
            assert_eq!(rows.expect("fetches").len(), 1);
        })
        .await;
        assert_eq!((usage.queries, usage.transactions), (10, 1));
        assert_eq!(usage.rows, 3 + 2 + 1 + 3 + 1 + 1);
    });
}

fn refused(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "refused", 2).await;
        let raw = pool.unmetered();
        let extension = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public";
        // Another test may be making it right now.
        sqlx::query(extension).execute(raw).await.ok();
        let mark = format!("refused by {}", std::process::id());
        let insert = format!("INSERT /* {mark} */ INTO budget_items (id, hits) VALUES ($1, 0)");
        let insert = sqlx::AssertSqlSafe(std::sync::Arc::<str>::from(insert)).into_sql_str();
        let work = async {
            for id in 100..110 {
                if let Err(error) = sqlx::query(insert.clone()).bind(id).execute(&pool).await {
                    return Cut::find(&error).expect("holds the cut").to_string();
                }
            }
            unreachable!("the fourth is refused")
        };
        let limit = request_budget::Limit::hard(3);
        let cut = work.budgeted("inserts", Budget::new().queries(limit)).await;
        let cut = cut.expect_err("is cut").to_string();
        assert!(cut.starts_with("inserts was cut: 4 queries, limit 3: `INSERT"), "{cut}");
        let calls = "SELECT sum(calls)::bigint FROM public.pg_stat_statements
            WHERE query LIKE 'INSERT /* ' || $1 || ' */%'";
        let calls: i64 =
            sqlx::query_scalar(calls).bind(&mark).fetch_one(raw).await.expect("counts");
        let there = "SELECT count(*) FROM budget_items WHERE id >= 100";
        let there: i64 = sqlx::query_scalar(there).fetch_one(raw).await.expect("counts");
        assert_eq!((calls, there), (3, 3));
    });
}

fn connection_wait(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "connection_wait", 1).await;
        let held = pool.acquire().await.expect("acquires");
        let (asked, is_asked) = tokio::sync::oneshot::channel();
        let work = async {
            let mut fetch = std::pin::pin!(count(&pool));
            // Asks for the connection, and waits.
            let pending = futures_util::poll!(&mut fetch).is_pending();
            asked.send(pending).expect("somebody waits");
            fetch.await.expect("counts");
            Usage::current().expect("inside")
        };
        let release = async {
            assert!(is_asked.await.expect("is sent"));
            sqlx::query("SELECT pg_sleep(0.1)").execute(&mut *{ held }).await.expect("sleeps");
        };
        let (usage, ()) = tokio::join!(work.budgeted("waits", Budget::new()), release);
        let usage = usage.expect("no limit");
        assert!(usage.connection_wait >= Duration::from_millis(100), "{usage}");
        assert!(usage.query_time < usage.connection_wait, "{usage}");
        assert_eq!(usage.queries, 1);
    });
}

fn cancelled(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "cancelled", 2).await;
        let usage = usage_of(async {
            let mut sleep = Box::pin(sqlx::query("SELECT pg_sleep(0.05)").execute(&pool));
            while Usage::current().expect("inside").queries == 0 {
                assert!(futures_util::poll!(&mut sleep).is_pending());
                tokio::task::yield_now().await;
            }
            drop(sleep);
            assert_eq!(count(&pool).await.expect("counts"), 20);
        })
        .await;
        assert_eq!(usage.queries, 2);
    });
}

fn in_flight(url: &str) {
    with_runtime(2, async {
        let pool = pool(url, "in_flight", 2).await;
        let (sent, is_sent) = tokio::sync::oneshot::channel();
        let mut child = None;
        let usage = usage_of(async {
            let work = async move {
                let mut sleep = std::pin::pin!(sqlx::query("SELECT pg_sleep(0.1)").execute(&pool));
                while Usage::current().expect("carried").queries == 0 {
                    assert!(futures_util::poll!(&mut sleep).is_pending());
                    tokio::task::yield_now().await;
                }
                sent.send(()).expect("somebody waits");
                sleep.await.expect("sleeps");
                Usage::current().expect("carried")
            };
            child = Some(tokio::spawn(work.in_current_budget()));
            is_sent.await.expect("is sent");
        })
        .await;
        assert_eq!(usage.queries, 1);
        let after = child.expect("was spawned").await.expect("no panic");
        assert_eq!(after.queries, 1, "it was counted already");
    });
}

fn killed(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "killed", 2).await;
        let usage = usage_of(async {
            let mut connection = pool.acquire().await.expect("acquires");
            let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                .fetch_one(&mut *connection)
                .await
                .expect("fetches");
            let kill = sqlx::query("SELECT pg_terminate_backend($1)").bind(id);
            kill.execute(pool.unmetered()).await.expect("kills");
            let error = count(&mut *connection).await.expect_err("the server has hung up");
            assert!(matches!(error, sqlx::Error::Database(_) | sqlx::Error::Io(_)), "{error}");
        })
        .await;
        assert_eq!(usage.queries, 2);
        let next = usage_of(async { assert_eq!(count(&pool).await.expect("counts"), 20) }).await;
        assert_eq!((next.queries, next.rows), (1, 1), "nothing leaks into the next");
    });
}

fn errors_unchanged(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "errors", 1).await;
        // Pool exhausted.
        let small =
            PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(50));
        let small = Pool::from(small.connect(url).await.expect("connects"));
        let usage = usage_of(async {
            let _held = small.acquire().await.expect("acquires");
            let error = sqlx::query("SELECT 1").execute(&small).await.expect_err("none is free");
            assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error}");
        })
        .await;
        assert_eq!(usage.queries, 0);
        assert!(usage.connection_wait >= Duration::from_millis(50), "{usage}");
        // Server not there: the pool tries until its own timeout.
        let nobody: PgConnectOptions =
            "postgres://nobody@127.0.0.1:1/none".parse().expect("parses");
        let nobody = PgPoolOptions::new()
            .acquire_timeout(Duration::from_millis(50))
            .connect_lazy_with(nobody);
        let nobody = Pool::from(nobody);
        let usage = usage_of(async {
            let error = sqlx::query("SELECT 1").execute(&nobody).await.expect_err("nobody listens");
            assert!(matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut), "{error}");
        })
        .await;
        assert_eq!(usage.queries, 0);
        // TLS asked of a server that has none.
        let tls: PgConnectOptions = url.parse().expect("parses");
        let tls = PgPoolOptions::new().connect_lazy_with(tls.ssl_mode(PgSslMode::Require));
        let expected = tls.acquire().await.expect_err("no TLS").to_string();
        let tls = Pool::from(tls);
        let usage = usage_of(async {
            let error = sqlx::query("SELECT 1").execute(&tls).await.expect_err("no TLS");
            assert_eq!(error.to_string(), expected);
        })
        .await;
        assert_eq!(usage.queries, 0);
        // Arguments that cannot be encoded.
        let usage = usage_of(async {
            let error = sqlx::query("SELECT $1").bind(Unencodable).execute(&pool).await;
            assert!(matches!(error, Err(sqlx::Error::Encode(_))), "{error:?}");
        })
        .await;
        assert_eq!(usage.queries, 0);
    });
}

struct Unencodable;

impl sqlx::Type<Postgres> for Unencodable {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <i32 as sqlx::Type<Postgres>>::type_info()
    }
}

impl sqlx::Encode<'_, Postgres> for Unencodable {
    fn encode_by_ref(
        &self,
        _: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        Err("it has no encoding".into())
    }
}

fn any_driver(url: &str) {
    with_runtime(0, async {
        sqlx::any::install_default_drivers();
        let pool = sqlx::any::AnyPoolOptions::new().max_connections(1).connect(url).await;
        let pool = Pool::from(pool.expect("connects"));
        let usage = usage_of(async {
            let rows = sqlx::query("SELECT 1 UNION SELECT 2").fetch_all(&pool).await;
            assert_eq!(rows.expect("fetches").len(), 2);
            let mut transaction = pool.begin().await.expect("begins");
            sqlx::query("SELECT 1").execute(&mut *transaction).await.expect("executes");
            transaction.rollback().await.expect("rolls back");
        })
        .await;
        assert_eq!((usage.queries, usage.rows, usage.transactions), (2, 2, 1));
    });
}

fn borrowed(url: &str) {
    use sqlx::Executor as _;

    with_runtime(0, async {
        let options = PgPoolOptions::new().after_connect(|connection, _| {
            Box::pin(async move {
                let mut metered = BorrowedConnection::new(connection);
                metered.execute("SET application_name = 'borrowed'").await.map(drop)
            })
        });
        let hooked = Pool::from(options.connect_lazy(url).expect("a connection string"));
        let name = sqlx::query_scalar::<_, String>("SHOW application_name");
        let usage = usage_of(async {
            assert_eq!(name.fetch_one(&hooked).await.expect("executes"), "borrowed");
        });
        assert_eq!(usage.await.queries, 2);

        let mut listener = PgListener::connect(url).await.expect("connects");
        let connection = listener.acquire().await.expect("is connected");
        let two = || sqlx::query_scalar::<_, i32>("SELECT 2");
        let usage = usage_of(async {
            let mut metered = BorrowedConnection::new(&mut *connection);
            assert_eq!(two().fetch_one(&mut metered).await.expect("executes"), 2);
            let texts = ["SELECT 1", "SELECT 2"].join(";");
            let batch = sqlx::raw_sql(sqlx::AssertSqlSafe(texts)).execute(&mut metered).await;
            batch.expect("executes");
        });
        assert_eq!(usage.await.queries, 3);

        let work = async {
            let mut metered = BorrowedConnection::new(&mut *connection);
            drop(metered.execute("SELECT pg_sleep(0.3)").await);
        };
        let budget = Budget::new().total_time(Duration::from_millis(100));
        work.budgeted("work", budget).await.expect_err("cut");
        // What is left of it is waited for, and belongs to nobody else.
        assert_eq!(two().fetch_one(&mut *connection).await.expect("executes"), 2);
    });
}

fn unmetered_uses(url: &str) {
    with_runtime(0, async {
        let pool = pool(url, "unmetered", 2).await;
        let usage = usage_of(async {
            let mut listener = PgListener::connect_with(pool.unmetered()).await.expect("connects");
            listener.listen("news").await.expect("listens");
            sqlx::query("NOTIFY news, 'hello'").execute(&pool).await.expect("notifies");
            assert_eq!(listener.recv().await.expect("receives").payload(), "hello");
            let mut connection = pool.acquire().await.expect("acquires");
            let mut copy = connection
                .unmetered()
                .copy_in_raw("COPY budget_items (id) FROM STDIN")
                .await
                .expect("copies");
            copy.send(&b"200\n201\n"[..]).await.expect("sends");
            assert_eq!(copy.finish().await.expect("ends"), 2);
        })
        .await;
        assert_eq!(usage.queries, 1, "only what went through the metered pool");
    });
}
