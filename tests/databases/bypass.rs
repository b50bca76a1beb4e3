//! The bypass witness: what reaches sqlx past the metered pools shows as unmetered.

use std::sync::{Arc, Mutex};

use apalis_core::backend::TaskSink;
use apalis_postgres::PostgresStorage;
use request_budget::db::SqlxEvents;
use request_budget::report::{Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Usage, Violation};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Executor, MySqlPool, PgPool};
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("bypass_a_job_queue_with_a_plain_pool_is_seen_on_postgres", job_queue),
            ("bypass_driver_questions_of_its_own_are_nobody_s_bypass", own_questions),
            ("bypass_hooks_of_a_metered_pool_are_none_on_postgres", hooks_of_postgres),
            ("bypass_a_listener_is_seen", listener),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("bypass_a_plain_pool_is_seen_on_mariadb", plain_mariadb),
            ("bypass_hooks_of_a_metered_pool_are_none_on_mariadb", hooks_of_mariadb),
        ],
    );
}

/// The usage of the last work, and the statements that nobody counted in it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Option<Found>>>);

type Found = (Usage, Vec<(String, u64)>);

impl Reporter for Seen {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let unmetered =
            report.unmetered().map(|tally| (tally.text.to_owned(), tally.times)).collect();
        *self.0.lock().expect("not poisoned") = Some((report.usage(), unmetered));
    }
}

async fn watched(work: impl Future<Output = ()>) -> Found {
    let seen = Seen::default();
    let work = work.budgeted("request", Budget::new()).with_reporter(seen.clone());
    let subscriber = tracing_subscriber::registry().with(SqlxEvents::witness());
    work.with_subscriber(subscriber).await.expect("no limit");
    seen.0.lock().expect("not poisoned").take().expect("reported")
}

fn job_queue(url: &str) {
    with_runtime(0, async {
        // One connection: each looks types up for itself, the first time.
        let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
        PostgresStorage::setup(&plain).await.expect("makes its tables");
        let pool = Pool::from(plain.clone());
        let mut jobs = PostgresStorage::<String>::new(&plain);
        // The first one makes the driver look types up, which passes the metered pool by as well.
        jobs.push("warm up".to_owned()).await.expect("pushes");
        let (usage, unmetered) = watched(async {
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
            jobs.push("send the invoice".to_owned()).await.expect("pushes");
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
        })
        .await;
        assert_eq!(usage.queries, 2);
        assert_eq!(usage.unmetered, 1, "{unmetered:?}");
        let [(text, 1)] = &*unmetered else { panic!("{unmetered:?}") };
        assert!(text.contains("apalis"), "{text}");
    });
}

fn own_questions(url: &str) {
    with_runtime(0, async {
        let raw = PgPool::connect(url).await.expect("connects");
        // A type of our own, which the driver has to look up in the catalogue.
        sqlx::raw_sql("DROP TABLE IF EXISTS budget_mooded; DROP TYPE IF EXISTS budget_mood;
            CREATE TYPE budget_mood AS ENUM ('fine', 'sad'); CREATE TABLE budget_mooded (mood budget_mood)")
            .execute(&raw)
            .await
            .expect("makes a type");
        let pool = Pool::from(PgPool::connect(url).await.expect("connects"));
        let (usage, unmetered) = watched(async {
            let insert = "INSERT INTO budget_mooded VALUES ('fine') RETURNING mood";
            sqlx::query(insert).fetch_one(&pool).await.expect("inserts");
            let mut transaction = pool.begin().await.expect("begins");
            sqlx::query("SELECT mood FROM budget_mooded")
                .fetch_all(&mut *transaction)
                .await
                .expect("reads");
            sqlx::query("SELECT nonsense").execute(&mut *transaction).await.expect_err("no column");
            transaction.rollback().await.expect("rolls back");
            // A batch is one event and two statements.
            sqlx::raw_sql("SELECT 1; SELECT 2").execute(&pool).await.expect("executes");
        })
        .await;
        assert_eq!((usage.queries, usage.unmetered), (5, 0), "{unmetered:?}");
    });
}

fn plain_mariadb(url: &str) {
    with_runtime(0, async {
        let plain = MySqlPool::connect_lazy(url).expect("a connection string");
        let pool = Pool::from(MySqlPool::connect_lazy(url).expect("a connection string"));
        let (usage, unmetered) = watched(async {
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
            sqlx::query("SELECT 2").execute(&plain).await.expect("executes");
            sqlx::query("SELECT 1").execute(&plain).await.expect("executes");
        })
        .await;
        assert_eq!(usage.queries, 1);
        let mut unmetered = unmetered;
        unmetered.sort();
        assert_eq!(unmetered, [("SELECT 1".to_owned(), 1), ("SELECT 2".to_owned(), 1)]);
        assert_eq!(usage.unmetered, 2);
    });
}

/// Statements on a pool of one connection whose hooks execute the same text.
macro_rules! hooks {
    ($options:expr, $url:expr) => {{
        const HOOK: &str = "SELECT 'hook'";
        let options = $options.max_connections(1);
        let options = options.after_connect(|connection, _| {
            Box::pin(async move { connection.execute(HOOK).await.map(drop) })
        });
        let options = options.before_acquire(|connection, _| {
            Box::pin(async move { connection.execute(HOOK).await.map(|_| true) })
        });
        let pool = Pool::from(options.connect_lazy($url).expect("a connection string"));
        let (usage, unmetered) = watched(async {
            for _ in 0..3 {
                pool.execute(HOOK).await.expect("executes");
            }
            pool.describe(sqlx::SqlStr::from_static(HOOK)).await.expect("describes");
        })
        .await;
        assert_eq!((usage.queries, usage.unmetered), (3, 0), "{unmetered:?}");
        // The witness is not blind to that text.
        let past = async {
            pool.unmetered().execute(HOOK).await.expect("executes");
        };
        assert!(watched(past).await.0.unmetered > 0);
    }};
}

fn hooks_of_postgres(url: &str) {
    with_runtime(0, async { hooks!(PgPoolOptions::new(), url) });
}

fn hooks_of_mariadb(url: &str) {
    with_runtime(0, async { hooks!(MySqlPoolOptions::new(), url) });
}

fn listener(url: &str) {
    with_runtime(0, async {
        let pool = Pool::from(PgPool::connect(url).await.expect("connects"));
        let (usage, unmetered) = watched(async {
            let listener = PgListener::connect_with(pool.unmetered()).await;
            listener.expect("connects").listen("news").await.expect("listens");
        })
        .await;
        assert_eq!((usage.queries, usage.unmetered), (0, 1));
        assert_eq!(unmetered, [("LISTEN \"news\"".to_owned(), 1)]);
    });
}
