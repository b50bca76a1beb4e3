//! Random programs on plain pools, each observed against what the database itself has executed.

pub(crate) use std::time::Duration;

pub(crate) use futures_util::TryStreamExt;
pub(crate) use futures_util::future::join_all;
pub(crate) use proptest::test_runner::TestCaseError;
pub(crate) use request_budget::BudgetExt;
pub(crate) use request_budget::db::executed;

pub(crate) use crate::check::usage_of;
use crate::check::{check, fifty};
use crate::server::{self, alone_with_the_log};
use crate::steps::{Program, Step, Use};
use crate::suite::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[
            ("sqlx_0_7_is_what_postgres_executes_on_one_thread", |url| v0_7::on_postgres(url, 0)),
            ("sqlx_0_7_is_what_postgres_executes_on_two_threads", |url| v0_7::on_postgres(url, 2)),
            ("sqlx_0_8_is_what_postgres_executes_on_one_thread", |url| v0_8::on_postgres(url, 0)),
            ("sqlx_0_8_is_what_postgres_executes_on_two_threads", |url| v0_8::on_postgres(url, 2)),
            ("sqlx_0_7_is_told_apart_among_fifty_requests_on_postgres", v0_7::fifty_at_once),
            ("sqlx_0_8_is_told_apart_among_fifty_requests_on_postgres", v0_8::fifty_at_once),
        ],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[
            ("sqlx_0_7_is_what_mariadb_logs_on_one_thread", |url| v0_7::on_mariadb(url, 0)),
            ("sqlx_0_7_is_what_mariadb_logs_on_two_threads", |url| v0_7::on_mariadb(url, 2)),
            ("sqlx_0_8_is_what_mariadb_logs_on_one_thread", |url| v0_8::on_mariadb(url, 0)),
            ("sqlx_0_8_is_what_mariadb_logs_on_two_threads", |url| v0_8::on_mariadb(url, 2)),
        ],
    );
}

/// How a database spells what the programs do, and what it shows of it.
pub(crate) struct Dialect {
    pub(crate) create: &'static str,
    pub(crate) insert: &'static str,
    pub(crate) one: &'static str,
    /// Whether the database shows a statement that fails when it is executed.
    pub(crate) failed_execution_is_seen_as: u64,
    /// How many statements the database shows of a text of two.
    pub(crate) batch_is_seen_as: u64,
    /// Whether the driver reads rows that nobody takes, of a stream that is dropped.
    pub(crate) reads_ahead: bool,
}

pub(crate) const POSTGRES: Dialect = Dialect {
    create: "CREATE TABLE budget_items (id INT PRIMARY KEY, hits INT NOT NULL DEFAULT 0)",
    insert: "INSERT INTO budget_items (id) VALUES ($1)",
    one: "SELECT id FROM budget_items WHERE id = $1",
    failed_execution_is_seen_as: 0,
    batch_is_seen_as: 2,
    reads_ahead: false,
};

pub(crate) const MARIADB: Dialect = Dialect {
    create: "CREATE TABLE budget_items (id INT PRIMARY KEY, hits INT NOT NULL DEFAULT 0)",
    insert: "INSERT INTO budget_items (id) VALUES (?)",
    one: "SELECT id FROM budget_items WHERE id = ?",
    failed_execution_is_seen_as: 1,
    batch_is_seen_as: 1,
    reads_ahead: false,
};

pub(crate) const ALL: &str = "SELECT id FROM budget_items ORDER BY id";
pub(crate) const UPDATE: &str = "UPDATE budget_items SET hits = hits + 1";
pub(crate) const BATCH: &str =
    "UPDATE budget_items SET hits = 1; SELECT count(*) FROM budget_items";
pub(crate) const NO_SUCH_COLUMN: &str = "SELECT nonsense FROM budget_items";

/// How many connections each pool has.
pub(crate) const CONNECTIONS: u32 = 3;

/// Whether the program drops a stream before its last row.
pub(crate) fn drops_a_stream(program: &Program) -> bool {
    let drops = |what: &Use| matches!(what, Use::Stream(Some(_)));
    program.iter().any(|(step, ..)| match step {
        Step::One(what) | Step::Carried(what) => drops(what),
        Step::Transaction(uses, _) => uses.iter().any(drops),
        Step::Joined(_) | Step::NotCarried => false,
    })
}

/// Makes `run_program` and what is around it for a database of a version of sqlx.
macro_rules! programs_on {
    ($sqlx:ident, $database:ident, $dialect:expr) => {
        use $sqlx::{Connection as _, Database, Executor, Pool, $database};

        use proptest::{prop_assert, prop_assert_eq};

        use crate::plain::*;
        use crate::steps::{Done, End, Program, Step, Use};

        /// Makes a table of twenty rows.
        pub(crate) async fn make_table(connection: &mut <$database as Database>::Connection) {
            let create = $sqlx::query($dialect.create).execute(&mut *connection).await;
            create.expect("creates");
            for id in 1..=20_i32 {
                let insert = $sqlx::query($dialect.insert).bind(id);
                insert.execute(&mut *connection).await.expect("inserts");
            }
        }

        /// Waits until every connection is done with all that it was sent.
        pub(crate) async fn settle(pool: &Pool<$database>) {
            // Two that each hold some of the connections would wait for each other.
            static ALL_CONNECTIONS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
            let _alone = ALL_CONNECTIONS.lock().await;
            for connection in join_all((0..CONNECTIONS).map(|_| pool.acquire())).await {
                connection.expect("acquires").ping().await.expect("answers");
            }
        }

        async fn run_use<'c>(
            what: Use,
            executor: impl Executor<'c, Database = $database>,
            reports: bool,
            done: &mut Done,
        ) {
            let before = done.rows;
            let text = match what {
                Use::FetchOne => {
                    let one = $sqlx::query($dialect.one).bind(1_i32);
                    one.fetch_one(executor).await.expect("fetches");
                    done.rows += 1;
                    $dialect.one
                }
                Use::FetchOptional => {
                    let none = $sqlx::query($dialect.one).bind(-1_i32).fetch_optional(executor);
                    assert!(none.await.expect("fetches").is_none());
                    $dialect.one
                }
                Use::FetchAll => {
                    let rows = $sqlx::query(ALL).fetch_all(executor).await;
                    done.rows += rows.expect("fetches").len() as u64;
                    ALL
                }
                Use::Stream(take) => {
                    let mut left = take.unwrap_or(usize::MAX);
                    let mut rows = $sqlx::query(ALL).fetch(executor);
                    while rows.try_next().await.expect("fetches").is_some() {
                        done.rows += 1;
                        left = left.saturating_sub(1);
                        if left == 0 {
                            break;
                        }
                    }
                    ALL
                }
                Use::Execute => {
                    $sqlx::query(UPDATE).execute(executor).await.expect("executes");
                    UPDATE
                }
                Use::Batch => {
                    executor.execute(BATCH).await.expect("executes");
                    // An event reports a text, however many statements are in it, and the row that
                    // `execute` throws away.
                    done.rows += 1;
                    done.uncounted += $dialect.batch_is_seen_as.saturating_sub(1);
                    done.unseen += 1_u64.saturating_sub($dialect.batch_is_seen_as);
                    BATCH
                }
                Use::Prepare => {
                    drop(executor.prepare(ALL).await.expect("prepares"));
                    return;
                }
                Use::NeverPolled => {
                    drop($sqlx::query(ALL).fetch_all(executor));
                    return;
                }
                Use::FailsAtExecution => {
                    let insert = $sqlx::query($dialect.insert).bind(1_i32).execute(executor);
                    insert.await.expect_err("the key is there");
                    done.unseen += 1 - $dialect.failed_execution_is_seen_as;
                    $dialect.insert
                }
                Use::FailsAtPrepare => {
                    let select = $sqlx::query(NO_SUCH_COLUMN).execute(executor);
                    select.await.expect_err("no column");
                    done.unseen += 1;
                    NO_SUCH_COLUMN
                }
            };
            done.plain += 1;
            if reports {
                executed(text, Duration::ZERO, done.rows - before);
            }
        }

        async fn run_program(program: &Program, pool: &Pool<$database>, done: &mut Done) {
            for (step, _, reports) in program {
                let reports = *reports;
                match step {
                    Step::One(what) => run_use(*what, pool, reports, done).await,
                    Step::Transaction(uses, end) => {
                        let mut transaction = pool.begin().await.expect("begins");
                        for what in uses {
                            run_use(*what, &mut *transaction, reports, done).await;
                        }
                        match end {
                            End::Commit => transaction.commit().await.expect("commits"),
                            End::Rollback => transaction.rollback().await.expect("rolls back"),
                            End::Drop => drop(transaction),
                        }
                    }
                    Step::Joined(count) => {
                        let one = |_| $sqlx::query($dialect.one).bind(1_i32).fetch_one(pool);
                        for row in join_all((0..*count).map(one)).await {
                            row.expect("fetches");
                            done.rows += 1;
                            done.plain += 1;
                        }
                    }
                    Step::Carried(what) => {
                        let (what, pool) = (*what, pool.clone());
                        let child = async move {
                            let mut done = Done::default();
                            run_use(what, &pool, reports, &mut done).await;
                            done
                        };
                        let child = tokio::spawn(child.in_current_budget()).await;
                        let child = child.expect("no panic");
                        done.rows += child.rows;
                        done.plain += child.plain;
                        done.unseen += child.unseen;
                        done.uncounted += child.uncounted;
                    }
                    Step::NotCarried => {
                        let pool = pool.clone();
                        let child = async move { $sqlx::query(ALL).fetch_all(&pool).await };
                        tokio::spawn(child).await.expect("no panic").expect("fetches");
                        done.uncounted += 1;
                    }
                }
            }
            settle(pool).await;
        }

        /// Runs the program; what was counted is what the database has executed.
        pub(crate) async fn equal_the_database(
            pool: &Pool<$database>,
            program: &Program,
            executed: impl AsyncFn() -> u64,
        ) -> Result<(), TestCaseError> {
            let delete = "DELETE FROM budget_items WHERE id > 20";
            $sqlx::query(delete).execute(pool).await.expect("deletes");
            let before = executed().await;
            let mut done = Done::default();
            let usage = usage_of(run_program(program, pool, &mut done)).await;
            let seen = executed().await - before;
            prop_assert_eq!(usage.queries, seen + done.unseen - done.uncounted, "{:?}", usage);
            prop_assert_eq!((usage.observed, usage.unmetered), (done.plain, 0));
            prop_assert_eq!(usage.transactions, done.transactions);
            if $dialect.reads_ahead && drops_a_stream(program) {
                prop_assert!(usage.rows >= done.rows, "{:?}", usage);
            } else {
                prop_assert_eq!(usage.rows, done.rows, "{:?}", usage);
            }
            Ok(())
        }
    };
}
pub(crate) use programs_on;

macro_rules! version {
    ($name:ident, $sqlx:ident) => {
        mod $name {
            use $sqlx::pool::PoolOptions;

            use super::*;

            mod postgres {
                programs_on!($sqlx, Postgres, POSTGRES);
            }

            mod mariadb {
                programs_on!($sqlx, MySql, MARIADB);
            }

            pub(super) fn on_postgres(url: &str, workers: usize) {
                let runtime = runtime(workers);
                let name = format!("{}_{workers}", stringify!($name));
                let (pool, admin) = runtime.block_on(postgres_pool(url, &name));
                let executed = async || {
                    postgres::settle(&pool).await;
                    server::executed_by_postgres(&admin, &name).await
                };
                check(300, |program| {
                    let equal = postgres::equal_the_database(&pool, &program, executed);
                    runtime.block_on(equal)
                });
            }

            async fn postgres_pool(
                url: &str,
                name: &str,
            ) -> ($sqlx::Pool<$sqlx::Postgres>, sqlx::PgPool) {
                let (url, admin) = server::postgres_database(url, name).await;
                let options = PoolOptions::new().max_connections(CONNECTIONS);
                let pool = options.connect(&url).await.expect("connects");
                postgres::make_table(&mut pool.acquire().await.expect("acquires")).await;
                (pool, admin)
            }

            pub(super) fn on_mariadb(url: &str, workers: usize) {
                let runtime = runtime(workers);
                let name = format!("{}_{workers}", stringify!($name));
                let (pool, admin) = runtime.block_on(async {
                    let (url, admin) = server::mariadb_database(url, &name).await;
                    let options = PoolOptions::new().max_connections(CONNECTIONS);
                    let pool = options.connect(&url).await.expect("connects");
                    mariadb::make_table(&mut pool.acquire().await.expect("acquires")).await;
                    (pool, admin)
                });
                let logged = async || {
                    let mut ids = Vec::new();
                    for connection in join_all((0..CONNECTIONS).map(|_| pool.acquire())).await {
                        let mut connection = connection.expect("acquires");
                        let id = $sqlx::query_scalar::<_, u64>("SELECT connection_id()");
                        ids.push(id.fetch_one(&mut *connection).await.expect("answers"));
                    }
                    server::logged_by_mariadb(&admin, &ids).await
                };
                alone_with_the_log(|| {
                    check(300, |program| {
                        runtime.block_on(async {
                            server::empty_the_log(&admin).await;
                            mariadb::equal_the_database(&pool, &program, logged).await
                        })
                    });
                });
            }

            pub(super) fn fifty_at_once(url: &str) {
                let name = concat!(stringify!($name), "_fifty");
                with_runtime(2, async {
                    let (pool, admin) = postgres_pool(url, name).await;
                    let before = server::executed_by_postgres(&admin, name).await;
                    let all = fifty(|| {
                        let pool = pool.clone();
                        async move { $sqlx::query(ALL).fetch_all(&pool).await.expect("fetches").len() }
                    });
                    let all = all.await;
                    postgres::settle(&pool).await;
                    assert_eq!(all, server::executed_by_postgres(&admin, name).await - before);
                });
            }
        }
    };
}

version!(v0_7, sqlx_0_7);
version!(v0_8, sqlx);
