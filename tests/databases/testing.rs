//! Measurements on real servers: statements, their places, and what nobody counted.

use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::TryStreamExt;
use futures_util::future::Either;
use mongodb::bson::{Document, doc};
use request_budget::db::SqlxEvents;
use request_budget::mongodb::{Client, Detail};
use request_budget::sqlx::Pool;
use request_budget::testing::{Record, Statement, measure};
use request_budget::{Budget, Usage};
use sqlx::{Executor, MySqlPool, PgPool, SqlitePool};
use tracing::dispatcher::set_default;
use tracing_subscriber::layer::SubscriberExt;

use crate::alone::alone;
use crate::{Suite, with_runtime};

/// Two statements that differ in what is quoted by `"` are so many texts, whoever sees them: `"x"`
/// is a value of MySQL, and a name elsewhere.
macro_rules! quoted {
    ($plain:expr, $texts:expr) => {{
        let plain = $plain.await.expect("connects");
        let pool = Pool::from(plain.clone());
        let run = async || {
            for text in ["SELECT 1 AS \"posts\"", "SELECT 1 AS \"comments\""] {
                plain.execute(text).await.expect("executes");
            }
        };
        let texts = |statements: &[Statement]| {
            assert_eq!(statements.iter().map(|it| it.executions).sum::<u64>(), 2);
            statements.len()
        };
        // Nothing but the events of plain sqlx.
        let record = measure(run()).await;
        assert_eq!(texts(record.unmetered()), $texts, "{:?}", record.unmetered());
        {
            let counting = tracing_subscriber::registry().with(SqlxEvents::new());
            let _default = set_default(&counting.into());
            let record = measure(run()).await;
            assert_eq!(record.usage().observed, 2);
            assert_eq!(texts(record.statements()), $texts, "{:?}", record.statements());
        }
        // A text in which nothing is quoted is the same, whoever sees it.
        let record = measure(async {
            pool.execute("SELECT 1").await.expect("executes");
            run().await;
            plain.execute("SELECT 2").await.expect("executes");
        });
        let record = record.await;
        let [metered] = record.statements() else { panic!("{:?}", record.statements()) };
        assert!(record.unmetered().iter().any(|it| it.text == metered.text));
        assert_eq!(record.unmetered().len(), 1 + $texts);
    }};
}

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("testing_statements_of_postgres", postgres),
            ("testing_the_same_at_once_on_postgres", at_once),
            ("testing_early_ends_on_postgres", early),
            ("testing_quoted_names_of_postgres", |url| {
                with_runtime(0, async { quoted!(PgPool::connect(url), 2) });
            }),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("testing_statements_of_mariadb", mariadb),
            ("testing_quoted_values_of_mariadb", |url| {
                with_runtime(0, async { quoted!(MySqlPool::connect(url), 1) });
            }),
        ],
    );
    suite.without_server(&[("testing_quoted_names_of_sqlite", || {
        with_runtime(0, async { quoted!(SqlitePool::connect("sqlite::memory:"), 2) });
    })]);
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            ("testing_commands_of_mongodb", mongodb),
            ("testing_counts_of_mongodb", counts),
            ("testing_a_plain_client_of_mongodb", plain_client),
        ],
    );
}

/// Each text with its executions, its rows, and the line that it came from.
fn list(statements: &[Statement]) -> Vec<(&str, u64, u64, u32)> {
    let list = |statement: &Statement| {
        let place = statement.sites()[0].places[0].clone();
        assert_eq!(place.file, "tests/databases/testing.rs");
        place.line
    };
    statements.iter().map(|s| (&*s.text, s.executions, s.rows, list(s))).collect()
}

fn failure<T>(record: &Record<T>, budget: Budget) -> String {
    let assertion = AssertUnwindSafe(|| record.assert_within(budget));
    *catch_unwind(assertion).expect_err("it is over").downcast().expect("a message")
}

fn postgres(url: &str) {
    const METERED: u32 = line!() + 6;
    const PLAIN: u32 = line!() + 8;
    with_runtime(2, async {
        let plain = PgPool::connect(url).await.expect("connects");
        let pool = Pool::from(plain.clone());
        let metered = async |sql: &'static str| {
            pool.fetch_all(sql).await.expect("it is a good statement").len()
        };
        let bypass = async |sql: &'static str| {
            plain.fetch_all(sql).await.expect("it is a good statement").len()
        };
        let record = measure(async {
            metered("SELECT 'a', $tag$b$tag$ -- why").await;
            metered("SELECT n FROM generate_series(1, 3) n WHERE n IN (1, 2, 3)").await;
            metered("SELECT n FROM generate_series(1, 7) n WHERE n IN (5, 6)").await;
            bypass("SELECT 'c', 'd'").await;
            bypass("SELECT 'e', 'f', 'g'").await;
            bypass("SELECT 'h', 'i', 'j'").await;
            let mut tx = pool.begin().await.expect("begins");
            tx.execute("SELECT 1, 2, 3, 4").await.expect("it is a good statement");
            tx.commit().await.expect("commits");
        });
        let record = record.await;
        let statements = list(record.statements());
        let series = "SELECT n FROM generate_series(?, ?) n WHERE n IN (?)";
        assert_eq!(
            statements[..2],
            [("SELECT ?, ?", 1, 1, METERED), ("SELECT ?, ?, ?, ?", 1, 0, statements[1].3)]
        );
        assert_eq!(statements[2..], [(series, 2, 5, METERED)]);
        let unmetered = list(record.unmetered());
        assert_eq!(unmetered, [("SELECT ?, ?", 1, 0, PLAIN), ("SELECT ?, ?, ?", 2, 0, PLAIN)]);
        assert_eq!((record.usage().queries, record.usage().unmetered), (4, 3));
        record.assert_queries(7);
        let said = failure(&record, Budget::new().transactions(0));
        assert!(said.starts_with("1 transaction, limit 0: 1 too many\n"), "{said}");
        assert!(said.contains("transactions: 1\n       at tests/databases/testing.rs:"), "{said}");
    });
}

/// The same statement on both pools at once, the counted one ending last.
fn at_once(url: &str) {
    with_runtime(0, async {
        let plain = PgPool::connect(url).await.expect("connects");
        let pool = Pool::from(plain.clone());
        const TEXT: &str = "SELECT generate_series(1, 3)";
        let record = measure(async {
            let mut rows = pool.fetch(TEXT);
            assert!(rows.try_next().await.expect("there are rows").is_some());
            plain.execute(TEXT).await.expect("it is a good statement");
            while rows.try_next().await.expect("there are rows").is_some() {}
        });
        let record = record.await;
        assert_eq!((record.usage().queries, record.usage().unmetered), (1, 1));
        let [unmetered] = record.unmetered() else { panic!("one statement") };
        assert_eq!((&*unmetered.text, unmetered.executions), ("SELECT generate_series(?, ?)", 1));
        let said = failure(&record, Budget::new().queries(1));
        assert!(said.starts_with("2 queries, limit 1: 1 too many\n"), "{said}");
        assert!(said.contains("\n       (place unknown)\n"), "{said}");
    });
}

/// Streams and statements that are given up are no bypass, though the driver tells of them when
/// they are dropped.
fn early(url: &str) {
    with_runtime(0, async {
        let pool = Pool::from(PgPool::connect(url).await.expect("connects"));
        let record = measure(async {
            let mut rows = pool.fetch("SELECT generate_series(1, 100000)");
            assert!(rows.try_next().await.expect("there are rows").is_some());
            drop(rows);
            let slow = pool.execute("SELECT pg_sleep(2)");
            let is_sent = async {
                while Usage::current().is_some_and(|usage| usage.queries < 2) {
                    tokio::task::yield_now().await;
                }
            };
            let first = futures_util::future::select(slow, Box::pin(is_sent)).await;
            assert!(matches!(first, Either::Right(_)), "it is given up in the middle");
            drop(first);
            pool.execute("SELECT 1").await.expect("it is a good statement");
        });
        let record = record.await;
        assert_eq!((record.usage().queries, record.usage().unmetered), (3, 0));
        assert_eq!(record.unmetered().len(), 0);
    });
}

fn mariadb(url: &str) {
    const METERED: u32 = line!() + 6;
    with_runtime(0, async {
        let plain = MySqlPool::connect(url).await.expect("connects");
        let pool = Pool::from(plain.clone());
        let record = measure(async {
            for sql in ["SELECT \"eve\", 1 # who", "SELECT 'adam', 2"] {
                pool.execute(sql).await.expect("it is a good statement");
            }
            plain.execute("SELECT 1").await.expect("it is a good statement");
        });
        let record = record.await;
        assert_eq!(list(record.statements()), [("SELECT ?, ?", 2, 0, METERED)]);
        assert_eq!(record.unmetered().len(), 1);
        assert_eq!((record.usage().queries, record.usage().unmetered), (2, 1));
    });
}

/// In a database of its own: the tests run side by side.
async fn ask(client: &Client, database: &str) {
    let items = client.database(database).collection::<Document>("items");
    items.delete_many(doc! {}).await.expect("it is a good command");
    let documents = (0..5).map(|n| doc! { "n": n });
    items.insert_many(documents).await.expect("it is a good command");
    for n in 0..3 {
        items.find_one(doc! { "n": n }).await.expect("it is a good command");
    }
}

fn mongodb(url: &str) {
    const FIND: u32 = line!() - 5;
    for workers in [0, 2] {
        with_runtime(workers, async {
            let options =
                mongodb::options::ClientOptions::parse(url).await.expect("a good address");
            let client = Client::with_detail(options, Detail::Commands).expect("a client");
            let record = measure(ask(&client, "testing_commands")).await;
            let found = list(record.statements());
            let texts: Vec<_> =
                found.iter().map(|(text, times, rows, _)| (*text, *times, *rows)).collect();
            let expected = [
                ("delete items [{q: {}, limit: ?}]", 1, 0),
                ("find items {n: ?}", 3, 3),
                ("insert items", 1, 0),
            ];
            assert_eq!(texts, expected);
            assert_eq!(found[1].3, FIND);
            let repeated = Budget::new().repeated_queries(2);
            let said = failure(&record, repeated);
            assert!(said.starts_with("3 executions of the same statement, limit 2: 1 too many\n"));
            assert!(
                said.contains(
                    "`find items {n: ?}` was executed 3 times: fetch all at once, by `$in`"
                ),
                "{said}"
            );
            assert!(record.statements()[1].time > std::time::Duration::ZERO);
        });
    }
}

/// Without the details the commands have no names, but their places. A wrong wiring that no
/// assertion can see, so it is named on standard error: looked at from another process.
fn plain_client(url: &str) {
    let output = alone("testing_a_plain_client_of_mongodb", || {
        with_runtime(0, async {
            let _metered = Client::with_uri_str(url).await.expect("a client");
            let plain = mongodb::Client::with_uri_str(url).await.expect("a client");
            let ping = || async { plain.database("admin").run_command(doc! { "ping": 1 }).await };
            ping().await.expect("a connection");
            let record = measure(ping()).await;
            record.assert_queries(0);
            record.into_output().expect("it answers");
        });
    });
    if let Some(output) = output {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(", which nothing measures: "), "{said}");
    }
}

fn counts(url: &str) {
    with_runtime(0, async {
        let client = Client::with_uri_str(url).await.expect("a client");
        let record = measure(ask(&client, "testing_counts")).await;
        assert_eq!(record.usage().queries, 5);
        let [all] = record.statements() else { panic!("one for all") };
        assert_eq!(all.executions, 5);
        let sites = all.sites();
        assert_eq!(sites.iter().map(|site| site.times).collect::<Vec<_>>(), [3, 1, 1]);

        // In a task that is not carried along they are missing, and that is seen.
        let child = async {
            tokio::spawn(async move { ask(&client, "testing_counts").await }).await.expect("asks")
        };
        let record = measure(child).await;
        let said = failure(&record, Budget::new().queries(9));
        assert!(said.contains(", while 5 statements ran in other tasks\n"), "{said}");
    });
}
