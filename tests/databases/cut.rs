//! A statement that is cut frees its place in the pool at once, and its transaction is rolled back.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Resource, Usage};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{MySqlPool, PgPool};
use tokio::time::{Instant, timeout};

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("cut_on_postgres_frees_the_pool_on_one_thread", |url| {
                with_runtime(0, postgres(url, "cut_one"))
            }),
            ("cut_on_postgres_frees_the_pool_on_two_threads", |url| {
                with_runtime(2, postgres(url, "cut_two"))
            }),
            ("cut_on_postgres_by_a_client_that_hangs_up_on_one_thread", |url| {
                with_runtime(0, hang_up(url))
            }),
            ("cut_on_postgres_by_a_client_that_hangs_up_on_two_threads", |url| {
                with_runtime(2, hang_up(url))
            }),
            ("cut_on_postgres_ends_the_statement_on_the_server", ends_on_the_server),
            ("cut_on_postgres_of_what_is_only_prepared_frees_the_pool", cut_while_preparing),
            ("cut_on_postgres_of_two_calls_at_once_leaves_the_rest_alone", two_calls_cut),
            ("cut_on_postgres_leaves_a_stream_that_the_work_itself_drops", own_drop),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("cut_on_mariadb_frees_the_pool", |url| with_runtime(0, mariadb(url)))],
    );
}

const CUT_AFTER: Duration = Duration::from_millis(100);

/// What is cut would take so long: longer than the slowest machine needs for another connection.
const LONG: Duration = Duration::from_secs(20);

/// How long the next statement takes to be there and back, once another was cut by this.
macro_rules! next_after {
    ($pool:expr, $cut:expr) => {{
        let first = sqlx::query("SELECT 1").execute($pool).await;
        first.expect("warms the pool up");
        let since = Instant::now();
        $cut.await;
        sqlx::query("SELECT 1").execute($pool).await.expect("executes");
        since.elapsed()
    }};
}

/// The same cuts, against this pool of one connection and against the plain one, for both servers.
macro_rules! frees_the_pool {
    ($plain:expr, $sleep:expr, $sleep_long:expr, $table:expr) => {{
        let plain = $plain;
        let insert: &'static str = concat!("INSERT INTO ", $table, " VALUES (1)");
        let count: &'static str = concat!("SELECT count(*) FROM ", $table);
        let pool = Pool::from(plain.clone());
        let budget = Budget::new().total_time(CUT_AFTER);

        // Without us the pool waits for the statement: else the rest would prove nothing.
        let sent = Instant::now();
        let _ = next_after!(&plain, async {
            timeout(CUT_AFTER, sqlx::query($sleep).execute(&plain)).await.expect_err("is cut");
        });
        // However late the cut was on a machine with much to do.
        assert!(sent.elapsed() > Duration::from_secs(1), "{:?}", sent.elapsed());

        let by_time = next_after!(&plain, async {
            let cut =
                sqlx::query($sleep_long).execute(&pool).budgeted("slow", budget.clone()).await;
            let cut = cut.expect_err("is cut");
            assert_eq!(cut.violation().resource, Resource::TotalTime);
        });
        assert!(by_time < LONG / 2, "{by_time:?}");

        let in_transaction = next_after!(&plain, async {
            let work = async {
                let mut transaction = pool.begin().await?;
                sqlx::query(insert).execute(&mut *transaction).await?;
                sqlx::query($sleep_long).execute(&mut *transaction).await?;
                transaction.commit().await
            };
            work.budgeted("slow", budget.clone()).await.expect_err("is cut");
        });
        assert!(in_transaction < LONG / 2, "{in_transaction:?}");

        let between_statements = next_after!(&plain, async {
            let work = async {
                let mut transaction = pool.begin().await?;
                sqlx::query(insert).execute(&mut *transaction).await?;
                std::future::pending::<()>().await;
                transaction.commit().await
            };
            work.budgeted("slow", budget.clone()).await.expect_err("is cut");
        });
        assert!(between_statements < LONG / 2, "{between_statements:?}");

        let by_hanging_up = next_after!(&plain, async {
            let work = sqlx::query($sleep_long).execute(&pool).budgeted("slow", Budget::new());
            timeout(CUT_AFTER, work).await.expect_err("the client hangs up");
        });
        assert!(by_hanging_up < LONG / 2, "{by_hanging_up:?}");

        let as_external_call = next_after!(&plain, async {
            let work = async { sqlx::query($sleep_long).execute(&pool).external("database").await };
            let budget = Budget::new().external_timeout(CUT_AFTER);
            work.budgeted("slow", budget).await.expect("goes on").expect_err("is cut");
        });
        assert!(as_external_call < LONG / 2, "{as_external_call:?}");

        let of_a_stream = next_after!(&plain, async {
            use futures_util::TryStreamExt;
            let work = async { sqlx::query($sleep_long).fetch(&pool).try_next().await };
            work.budgeted("slow", budget.clone()).await.expect_err("is cut");
        });
        assert!(of_a_stream < LONG / 2, "{of_a_stream:?}");

        // A server may still be at it; what it does then is in a transaction that nobody commits.
        let left: i64 = sqlx::query_scalar(count).fetch_one(&plain).await.expect("counts");
        assert_eq!(left, 0);
        assert_eq!(plain.size(), 1);
    }};
}

async fn postgres(url: &str, schema: &'static str) {
    let options: PgConnectOptions = url.parse().expect("a connection string");
    let options = options.options([("search_path", schema)]);
    let plain =
        PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("connects");
    let make = format!(
        "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; CREATE TABLE {schema}.budget_cut (id INT)"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&plain).await.expect("makes a table");
    frees_the_pool!(plain, "SELECT pg_sleep(1)", "SELECT pg_sleep(20)", "budget_cut");
}

async fn mariadb(url: &str) {
    let admin = MySqlPool::connect(url).await.expect("connects");
    sqlx::raw_sql("DROP DATABASE IF EXISTS budget_cut; CREATE DATABASE budget_cut; CREATE TABLE budget_cut.budget_cut (id INT)")
        .execute(&admin)
        .await
        .expect("makes a table");
    let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
    let options = options.database("budget_cut");
    let plain =
        MySqlPoolOptions::new().max_connections(1).connect_with(options).await.expect("connects");
    frees_the_pool!(plain, "SELECT SLEEP(1)", "SELECT SLEEP(20)", "budget_cut");
}

fn ends_on_the_server(url: &str) {
    with_runtime(0, async {
        let options: PgConnectOptions = url.parse().expect("a connection string");
        let options = options.options([("client_connection_check_interval", "50ms")]);
        let pool =
            PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("connects");
        let pool = Pool::from(pool);
        let admin = PgPool::connect(url).await.expect("connects");
        let running = async || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%' AND state = 'active'";
            sqlx::query_scalar::<_, i64>(running).fetch_one(&admin).await.expect("counts")
        };
        let budget = Budget::new().total_time(CUT_AFTER);
        let sleep = sqlx::query("SELECT pg_sleep(30)").execute(&pool);
        sleep.budgeted("slow", budget).await.expect_err("is cut");
        let since = Instant::now();
        while running().await > 0 {
            assert!(since.elapsed() < Duration::from_secs(20), "the server goes on");
        }
    });
}

fn own_drop(url: &str) {
    with_runtime(0, async {
        use futures_util::TryStreamExt;
        let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
        let pool = Pool::from(plain);
        let backend = async || {
            let id = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&pool).await;
            id.expect("fetches")
        };
        let before = backend().await;
        let work = async {
            let mut rows = sqlx::query("SELECT generate_series(1, 1000)").fetch(&pool);
            rows.try_next().await.expect("fetches").expect("there are rows");
            drop(rows);
            let query = sqlx::query("SELECT pg_sleep(0.2)").execute(&pool);
            timeout(Duration::from_millis(20), query).await.expect_err("the work's own timeout");
            Usage::current().expect("inside").queries
        };
        assert_eq!(work.budgeted("first_row", Budget::new()).await, Ok(2));
        assert_eq!(backend().await, before, "the connection is the same one");
    });
}

/// A server with a pool of one connection, over TCP: how long after a client has hung up in the
/// middle of a statement the next request is answered, and the answer to one that was cut.
async fn hang_up(url: &str) {
    let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    let budget = Budget::new();
    let without = after_hang_up(server(plain.clone(), None).await).await;
    assert!(without > Duration::from_millis(700), "{without:?}");
    let with = after_hang_up(server(plain.clone(), Some(budget)).await).await;
    assert!(with < LONG / 2, "{with:?}");

    let cutting = server(plain, Some(Budget::new().total_time(CUT_AFTER))).await;
    let client = reqwest::Client::new();
    let get = async |path: &str| {
        let answer = client.get(format!("{cutting}/{path}")).send().await.expect("is answered");
        answer.status().as_u16()
    };
    assert_eq!(get("fast").await, 200);
    assert_eq!(get("slow").await, 503);
    let since = Instant::now();
    assert_eq!(get("fast").await, 200);
    assert!(since.elapsed() < LONG / 2, "{:?}", since.elapsed());
}

/// Starts the server and returns its address. Without a budget it is the plain one.
async fn server(plain: PgPool, budget: Option<Budget>) -> String {
    let pool = Pool::from(plain.clone());
    let is_plain = budget.is_none();
    let sleep = if is_plain { "SELECT pg_sleep(1)" } else { "SELECT pg_sleep(20)" };
    let handler = move |statement: &'static str| {
        let (plain, pool) = (plain.clone(), pool.clone());
        async move {
            let result = match is_plain {
                true => sqlx::query(statement).execute(&plain).await,
                false => sqlx::query(statement).execute(&pool).await,
            };
            result.map(drop).map_err(|error| error.to_string())
        }
    };
    let (fast, slow) = (handler.clone(), handler);
    let app = axum::Router::new()
        .route("/fast", axum::routing::get(move || fast("SELECT 1")))
        .route("/slow", axum::routing::get(move || slow(sleep)));
    let app = match budget {
        Some(budget) => app.layer(BudgetLayer::new(budget)),
        None => app,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    format!("http://{address}")
}

async fn after_hang_up(server: String) -> Duration {
    let client = reqwest::Client::new();
    client.get(format!("{server}/fast")).send().await.expect("warms the pool up");
    let slow = client.get(format!("{server}/slow")).timeout(CUT_AFTER).send().await;
    assert!(slow.expect_err("the client gives up").is_timeout());
    let since = Instant::now();
    let fast = client.get(format!("{server}/fast")).send().await.expect("is answered");
    assert_eq!(fast.status(), 200);
    since.elapsed()
}

fn cut_while_preparing(url: &str) {
    with_runtime(0, async {
        let admin = PgPool::connect(url).await.expect("connects");
        let make = "CREATE TABLE IF NOT EXISTS budget_prepared (id INT)";
        sqlx::query(make).execute(&admin).await.expect("makes a table");
        let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
        let pool = Pool::from(plain);
        let mut locked = admin.begin().await.expect("begins");
        let lock = "LOCK TABLE budget_prepared IN ACCESS EXCLUSIVE MODE";
        sqlx::query(lock).execute(&mut *locked).await.expect("locks");
        for statement in ["SELECT 1 FROM budget_prepared", "SELECT 2 FROM budget_prepared"] {
            let work = async {
                use sqlx::Executor;
                let statement = sqlx::SqlStr::from_static(statement);
                match statement.as_str().contains('1') {
                    true => pool.prepare(statement).await.map(drop),
                    false => (&pool).describe(statement).await.map(drop),
                }
            };
            let budget = Budget::new().total_time(CUT_AFTER);
            work.budgeted("preparing", budget).await.expect_err("is cut");
            // While the table is locked it would wait for ever.
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
        }
        locked.rollback().await.expect("unlocks");
    });
}

/// Two calls whose destructors overlap, in threads of their own.
fn two_calls_cut(url: &str) {
    struct Slow(Arc<Barrier>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.wait();
        }
    }

    with_runtime(2, async {
        let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
        let pool = Pool::from(plain);
        let both = Arc::new(Barrier::new(2));
        let work = async move {
            let calls = [(); 2].map(|()| {
                let slow = Slow(Arc::clone(&both));
                let call = async move {
                    let _slow = slow;
                    std::future::pending::<()>().await
                };
                tokio::spawn(async { call.external("payments").await }.in_current_budget())
            });
            for call in calls {
                call.await.expect("no panic").expect_err("is cut");
            }
            let backend = async || {
                let id = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
                id.fetch_one(&pool).await.expect("fetches")
            };
            let before = backend().await;
            let mut rows = sqlx::query("SELECT generate_series(1, 100)").fetch(&pool);
            futures_util::TryStreamExt::try_next(&mut rows).await.expect("fetches");
            drop(rows);
            assert_eq!(backend().await, before, "nothing was cut, so nothing is closed");
        };
        let budget = Budget::new().external_timeout(CUT_AFTER);
        tokio::spawn(work.budgeted("calls", budget)).await.expect("no panic").expect("goes on");
    });
}
