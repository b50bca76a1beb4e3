//! Plain pools of sqlx under `SqlxEvents`, beside metered ones: the count against the server's own
//! statistics.

use std::sync::PoisonError;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use request_budget::db::{SqlxEvents, executed};
use request_budget::sqlx::Pool;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Limit, Usage};
use sqlx::{Acquire, Executor, MySql, Postgres};
use tokio::task::yield_now;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

use crate::sql::{self, usage_of};
use crate::steps::{Done, End, Program, Step, Use, programs};
use crate::{Suite, mariadb, postgres, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("observed_is_what_postgres_executes_on_one_thread", |url| on_postgres(url, 0)),
            ("observed_is_what_postgres_executes_on_two_threads", |url| on_postgres(url, 2)),
            ("observed_is_told_apart_among_fifty_requests_on_postgres", fifty_at_once),
            ("observed_of_the_any_driver_on_postgres", any_driver),
            ("observed_past_a_hard_limit_cuts_on_postgres", cut),
            ("observed_is_asserted_exactly_on_postgres", measured),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("observed_is_what_mariadb_logs_on_one_thread", |url| on_mariadb(url, 0)),
            ("observed_is_what_mariadb_logs_on_two_threads", |url| on_mariadb(url, 2)),
            ("observed_of_the_any_driver_on_mariadb", any_driver),
        ],
    );
}

fn counting() -> Dispatch {
    Dispatch::new(tracing_subscriber::registry().with(SqlxEvents::new()))
}

macro_rules! programs_on {
    ($name:ident, $database:ty, $dialect:expr) => {
        mod $name {
            use super::*;

            async fn run_use<'c>(
                what: Use,
                executor: impl Executor<'c, Database = $database>,
                is_plain: bool,
                reports: bool,
                done: &mut Done,
            ) {
                let before = done.rows;
                let text = match what {
                    Use::FetchOne => {
                        let one = sqlx::query($dialect.one).bind(1_i32);
                        one.fetch_one(executor).await.expect("fetches");
                        done.rows += 1;
                        $dialect.one
                    }
                    Use::FetchOptional => {
                        let none = sqlx::query($dialect.one).bind(-1_i32).fetch_optional(executor);
                        assert!(none.await.expect("fetches").is_none());
                        $dialect.one
                    }
                    Use::FetchAll => {
                        let rows = sqlx::query(sql::ALL).fetch_all(executor).await;
                        done.rows += rows.expect("fetches").len() as u64;
                        sql::ALL
                    }
                    Use::Stream(take) => {
                        let mut left = take.unwrap_or(usize::MAX);
                        let mut rows = sqlx::query(sql::ALL).fetch(executor);
                        while rows.try_next().await.expect("fetches").is_some() {
                            done.rows += 1;
                            left = left.saturating_sub(1);
                            if left == 0 {
                                break;
                            }
                        }
                        sql::ALL
                    }
                    Use::Execute => {
                        let update = "UPDATE budget_items SET hits = hits + 1";
                        sqlx::query(update).execute(executor).await.expect("executes");
                        update
                    }
                    Use::Batch => {
                        sqlx::raw_sql($dialect.batch).execute(executor).await.expect("executes");
                        match is_plain {
                            // An event reports a text, however many statements are in it, and the
                            // row that `execute` throws away.
                            true => {
                                done.rows += 1;
                                done.uncounted += $dialect.batch_is_seen_as - 1;
                            }
                            false => done.unseen += 2 - $dialect.batch_is_seen_as,
                        }
                        $dialect.batch
                    }
                    Use::Prepare => {
                        let prepared = executor.prepare(sqlx::SqlStr::from_static(sql::ALL));
                        drop(prepared.await.expect("prepares"));
                        return;
                    }
                    Use::NeverPolled => {
                        drop(sqlx::query(sql::ALL).fetch_all(executor));
                        return;
                    }
                    Use::FailsAtExecution => {
                        let insert = sqlx::query($dialect.insert).bind(1_i32).execute(executor);
                        insert.await.expect_err("the key is there");
                        done.unseen += 1 - $dialect.failed_execution_is_seen_as;
                        $dialect.insert
                    }
                    Use::FailsAtPrepare => {
                        let select = sqlx::query(sql::NO_SUCH_COLUMN).execute(executor);
                        select.await.expect_err("no column");
                        done.unseen += 1;
                        sql::NO_SUCH_COLUMN
                    }
                };
                done.plain += u64::from(is_plain);
                if is_plain && reports {
                    executed(text, Duration::ZERO, done.rows - before);
                }
            }

            async fn run_program(program: &Program, pool: &Pool<$database>, done: &mut Done) {
                let plain = pool.unmetered();
                for (step, is_plain, reports) in program {
                    let (is_plain, reports) = (*is_plain, *reports);
                    match step {
                        Step::One(what) if is_plain => {
                            run_use(*what, plain, true, reports, done).await
                        }
                        Step::One(what) => run_use(*what, pool, false, reports, done).await,
                        Step::Transaction(uses, end) if is_plain => {
                            let mut transaction = plain.begin().await.expect("begins");
                            for what in uses {
                                run_use(*what, &mut *transaction, true, reports, done).await;
                            }
                            match end {
                                End::Commit => transaction.commit().await.expect("commits"),
                                End::Rollback => transaction.rollback().await.expect("rolls back"),
                                End::Drop => drop(transaction),
                            }
                        }
                        Step::Transaction(uses, end) => {
                            done.transactions += 1;
                            let mut transaction = pool.begin().await.expect("begins");
                            for what in uses {
                                run_use(*what, &mut *transaction, false, reports, done).await;
                            }
                            match end {
                                End::Commit => transaction.commit().await.expect("commits"),
                                End::Rollback => transaction.rollback().await.expect("rolls back"),
                                End::Drop => drop(transaction),
                            }
                        }
                        Step::Joined(count) => {
                            let one = || sqlx::query($dialect.one).bind(1_i32);
                            let plain = (0..*count).map(|_| one().fetch_one(plain));
                            let metered = (0..*count).map(|_| one().fetch_one(pool));
                            let (plain, metered) =
                                futures_util::join!(join_all(plain), join_all(metered));
                            for row in plain.into_iter().chain(metered) {
                                row.expect("fetches");
                                done.rows += 1;
                            }
                            done.plain += *count as u64;
                        }
                        Step::Carried(what) => {
                            let (what, pool) = (*what, pool.clone());
                            let child = async move {
                                let mut done = Done::default();
                                match is_plain {
                                    true => {
                                        let plain = pool.unmetered();
                                        run_use(what, plain, true, reports, &mut done).await
                                    }
                                    false => run_use(what, &pool, false, reports, &mut done).await,
                                }
                                done
                            };
                            let child = child.in_current_budget().with_current_subscriber();
                            let child = tokio::spawn(child).await.expect("no panic");
                            done.rows += child.rows;
                            done.plain += child.plain;
                            done.unseen += child.unseen;
                            done.uncounted += child.uncounted;
                        }
                        Step::NotCarried => {
                            let plain = plain.clone();
                            let child =
                                async move { sqlx::query(sql::ALL).fetch_all(&plain).await };
                            let child = tokio::spawn(child.with_current_subscriber());
                            child.await.expect("no panic").expect("fetches");
                            done.uncounted += 1;
                        }
                    }
                }
            }

            pub(super) async fn equal_the_server(
                pool: &Pool<$database>,
                program: &Program,
                executed: impl AsyncFn() -> u64,
            ) -> Result<(), TestCaseError> {
                let plain = pool.unmetered();
                let delete = "DELETE FROM budget_items WHERE id > 20";
                sqlx::query(delete).execute(plain).await.expect("deletes");
                let before = executed().await;
                let mut done = Done::default();
                let usage = usage_of(run_program(program, pool, &mut done));
                let usage = usage.with_subscriber(counting()).await;
                let seen = executed().await - before;
                prop_assert_eq!(usage.observed, done.plain, "{:?}", usage);
                prop_assert_eq!(usage.queries, seen + done.unseen - done.uncounted, "{:?}", usage);
                prop_assert_eq!(usage.rows, done.rows, "{:?}", usage);
                prop_assert_eq!((usage.transactions, usage.unmetered), (done.transactions, 0));
                Ok(())
            }
        }
    };
}

programs_on!(of_postgres, Postgres, postgres::DIALECT);
programs_on!(of_mariadb, MySql, mariadb::DIALECT);

fn three_hundred() -> TestRunner {
    TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() })
}

fn on_postgres(url: &str, workers: usize) {
    let runtime = runtime(workers);
    let name = if workers == 0 { "observed_one" } else { "observed_two" };
    let (pool, witness) = runtime.block_on(postgres::database(url, name));
    let executed = async || postgres::executed(&pool, &witness, name).await;
    let result = three_hundred().run(&programs(), |program| {
        runtime.block_on(of_postgres::equal_the_server(&pool, &program, &executed))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn on_mariadb(url: &str, workers: usize) {
    let _log = mariadb::LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime(workers);
    let name = if workers == 0 { "observed_one" } else { "observed_two" };
    let pool = runtime.block_on(mariadb::pool(url, name));
    let result = three_hundred().run(&programs(), |program| {
        runtime.block_on(async {
            mariadb::new_log(&pool).await;
            let logged = async || mariadb::logged(&pool).await;
            of_mariadb::equal_the_server(&pool, &program, logged).await
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn fifty_at_once(url: &str) {
    with_runtime(2, async {
        let (pool, witness) = postgres::database(url, "observed_fifty").await;
        let before = postgres::executed(&pool, &witness, "observed_fifty").await;
        let subscriber = counting();
        let request = |n: u64| {
            let pool = pool.clone();
            let work = async move {
                for _ in 0..n % 7 {
                    let all = sqlx::query(sql::ALL).fetch_all(pool.unmetered()).await;
                    assert_eq!(all.expect("fetches").len(), 20);
                }
                for _ in 0..n % 5 {
                    sqlx::query(sql::ALL).fetch_all(&pool).await.expect("fetches");
                }
                let usage = Usage::current().expect("inside");
                assert_eq!((usage.queries, usage.observed), (n % 7 + n % 5, n % 7), "{n}");
                assert_eq!(usage.rows, 20 * usage.queries);
                usage.queries
            };
            let work = work.budgeted("request", Budget::new());
            tokio::spawn(work.with_subscriber(subscriber.clone()))
        };
        let mut all = 0;
        for request in join_all((0..50).map(request)).await {
            all += request.expect("no panic").expect("no limit");
        }
        let seen = postgres::executed(&pool, &witness, "observed_fifty").await - before;
        assert_eq!(all, seen);
    });
}

fn any_driver(url: &str) {
    with_runtime(0, async {
        sqlx::any::install_default_drivers();
        let options = sqlx::any::AnyPoolOptions::new().max_connections(1);
        let plain = options.connect(url).await.expect("connects");
        let pool = Pool::from(plain.clone());
        let work = async {
            let rows = sqlx::query("SELECT 1 UNION SELECT 2").fetch_all(&plain).await;
            assert_eq!(rows.expect("fetches").len(), 2);
            let mut connection = plain.acquire().await.expect("acquires");
            let mut transaction = connection.begin().await.expect("begins");
            sqlx::query("SELECT 1").execute(&mut *transaction).await.expect("executes");
            transaction.rollback().await.expect("rolls back");
            drop(connection);
            sqlx::query("SELECT 1").execute(&pool).await.expect("executes");
        };
        let usage = usage_of(work).with_subscriber(counting()).await;
        assert_eq!((usage.queries, usage.observed, usage.unmetered), (3, 2, 0), "{usage:?}");
    });
}

fn cut(url: &str) {
    with_runtime(0, async {
        let (pool, witness) = postgres::database(url, "observed_cut").await;
        let before = postgres::executed(&pool, &witness, "observed_cut").await;
        let work = async {
            loop {
                sqlx::query(sql::ALL).fetch_all(pool.unmetered()).await.expect("fetches");
                // The poll ends. It need not in the statements: on a busy machine the server's
                // answer is there before it is waited for.
                yield_now().await;
            }
        };
        let budget = Budget::new().queries(Limit::hard(3));
        let work = work.budgeted("loop", budget).with_subscriber(counting());
        let cut: request_budget::Cut = match work.await {
            Ok(never) => never,
            Err(cut) => cut,
        };
        assert!(cut.to_string().starts_with("loop was cut: 4 queries, limit 3"), "{cut}");
        let seen = postgres::executed(&pool, &witness, "observed_cut").await - before;
        assert_eq!(seen, 4);
    });
}

fn measured(url: &str) {
    const LINE: u32 = line!() + 7;
    with_runtime(2, async {
        let (pool, witness) = postgres::database(url, "observed_measured").await;
        let before = postgres::executed(&pool, &witness, "observed_measured").await;
        let work = async {
            for id in 1..=4 {
                let one = sqlx::query(postgres::DIALECT.one).bind(id);
                one.fetch_one(pool.unmetered()).await.expect("fetches");
            }
            sqlx::query(sql::ALL).fetch_all(&pool).await.expect("fetches");
        };
        let record = measure(work).with_subscriber(counting()).await;
        let seen = postgres::executed(&pool, &witness, "observed_measured").await - before;
        assert_eq!((record.usage().queries, record.usage().observed), (seen, 4));
        assert_eq!((record.usage().rows, record.usage().unmetered), (24, 0));
        record.assert_queries(5);
        record.assert_no_unmetered();
        let [_, one] = record.statements() else { panic!("{:?}", record.statements()) };
        let place = &one.sites()[0].places[0];
        assert_eq!((&*place.file, place.line), ("tests/databases/observed.rs", LINE));
        assert_eq!((one.executions, one.rows), (4, 4));
    });
}
