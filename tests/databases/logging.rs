//! Whatever a plain pool logs of its statements, and whatever is filtered out of the log, it is no
//! blind spot.

use std::panic::{AssertUnwindSafe, catch_unwind};

use request_budget::Budget;
use request_budget::sqlx::Pool;
use request_budget::testing::{Record, measure};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Database, Executor, MySqlPool, PgPool};
use tracing::instrument::WithSubscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[("logging_is_no_blind_spot_on_postgres", postgres)],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("logging_is_no_blind_spot_on_mariadb", mariadb)],
    );
}

const LEVELS: [&str; 4] = ["trace", "debug", "info", "error"];
/// What the subscriber of the user lets through.
const FILTERS: [&str; 3] = ["off", "info,sqlx=off", "trace"];

fn postgres(url: &str) {
    with_runtime(0, async {
        let pool = Pool::from(PgPool::connect_lazy(url).expect("a connection string"));
        for level in LEVELS {
            let options: PgConnectOptions = url.parse().expect("a connection string");
            let options = options.log_statements(level.parse().expect("a level"));
            let plain = PgPoolOptions::new().max_connections(1).connect_with(options);
            no_blind_spot(&pool, &plain.await.expect("connects"), level).await;
        }
    });
}

fn mariadb(url: &str) {
    with_runtime(0, async {
        let pool = Pool::from(MySqlPool::connect_lazy(url).expect("a connection string"));
        for level in LEVELS {
            let options: MySqlConnectOptions = url.parse().expect("a connection string");
            let options = options.log_statements(level.parse().expect("a level"));
            let plain = MySqlPoolOptions::new().max_connections(1).connect_with(options);
            no_blind_spot(&pool, &plain.await.expect("connects"), level).await;
        }
    });
}

/// Three statements, one of them by `fetch_all` and one in a transaction.
async fn three<DB: Database>(plain: &sqlx::Pool<DB>)
where
    for<'a> &'a sqlx::Pool<DB>: Executor<'a, Database = DB>,
    for<'a> &'a mut DB::Connection: Executor<'a, Database = DB>,
{
    plain.execute("SELECT 1").await.expect("a good statement");
    plain.fetch_all("SELECT 1").await.expect("a good statement");
    let mut transaction = plain.begin().await.expect("begins");
    transaction.execute("SELECT 1").await.expect("a good statement");
    transaction.commit().await.expect("commits");
}

async fn no_blind_spot<DB: Database>(pool: &Pool<DB>, plain: &sqlx::Pool<DB>, level: &str)
where
    for<'a> &'a Pool<DB>: Executor<'a, Database = DB>,
    for<'a> &'a sqlx::Pool<DB>: Executor<'a, Database = DB>,
    for<'a> &'a mut DB::Connection: Executor<'a, Database = DB>,
{
    let record = measure(three(plain)).await;
    assert_seen(&record, level);
    let [statement] = record.unmetered() else { panic!("one text at {level}") };
    assert!(statement.text.starts_with("SELECT ?"), "{level}: {}", statement.text);
    for filter in FILTERS {
        let subscriber = tracing_subscriber::registry().with(EnvFilter::new(filter));
        let record = measure(three(plain)).with_subscriber(subscriber).await;
        assert_seen(&record, &format!("{level}, filtered by {filter}"));
    }
    // A statement of one's own does not make up for them.
    let record = measure(async {
        pool.execute("SELECT 1").await.expect("a good statement");
        three(plain).await;
    });
    let record = record.await;
    assert_eq!(record.usage().queries, 1, "{level}");
    failure(|| record.assert_queries(1));
    assert_seen(&record, &format!("{level}, beside another"));
}

fn assert_seen<T>(record: &Record<T>, how: &str) {
    assert_eq!(record.usage().unmetered, 3, "{how}");
    failure(|| record.assert_queries(0));
    failure(|| record.assert_no_repeated_statements());
    failure(|| record.assert_within(Budget::new().queries(2)));
    let said = failure(|| record.assert_no_unmetered());
    assert!(
        said.starts_with("3 statements passed through no metered connection\n"),
        "{how}: {said}"
    );
    assert!(said.contains("       at tests/databases/logging.rs:"), "{how}: {said}");
}

/// What a failing assertion says.
#[track_caller]
fn failure(assertion: impl FnOnce()) -> String {
    let failed = catch_unwind(AssertUnwindSafe(assertion));
    *failed.expect_err("it passes, blind").downcast().expect("a message")
}
