//! Random programs that are ended at random points: what was acknowledged lasts, and nothing else
//! does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Cut, Limit};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Executor, MySqlPool, PgPool, SqlitePool};

use crate::{Suite, runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[("rows_last_on_postgres_through_cuts_at_random", postgres)],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("rows_last_on_mariadb_through_cuts_at_random", mariadb)],
    );
    suite.without_server(&[
        ("rows_last_on_sqlite_in_memory_through_cuts_at_random", sqlite_in_memory),
        ("rows_last_on_sqlite_in_a_file_through_cuts_at_random", sqlite_in_a_file),
    ]);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Write,
    Read,
    Yield,
    Transaction { writes: u8, savepoint: Option<bool>, end: End },
}

#[derive(Debug, Clone, Copy)]
enum End {
    Commit,
    Rollback,
    Drop,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Dropped after so many polls, unless it has ended by then.
    Dropped(u32),
    /// Cut by a limit on its statements.
    TooMany(u64),
}

fn programs() -> impl Strategy<Value = (Vec<Step>, Fate)> {
    let end = prop_oneof![3 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Drop)];
    let transaction = (0..3_u8, any::<Option<bool>>(), end)
        .prop_map(|(writes, savepoint, end)| Step::Transaction { writes, savepoint, end });
    let plain = prop_oneof![Just(Step::Write), Just(Step::Read), Just(Step::Yield)];
    let step = prop_oneof![plain, transaction];
    let fate = prop_oneof![
        4 => (1..16_u32).prop_map(Fate::Dropped),
        1 => (0..6_u64).prop_map(Fate::TooMany),
    ];
    (prop::collection::vec(step, 1..6), fate)
}

/// What the programs know of the rows that they have written, by number.
#[derive(Debug, Default)]
struct Known {
    next: Cell<i64>,
    /// Their writing, or commit, was acknowledged.
    lasting: RefCell<BTreeSet<i64>>,
    /// Their writing, or commit, was in flight when the program was ended.
    doubtful: RefCell<BTreeSet<i64>>,
}

impl Known {
    fn number(&self) -> i64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Waits for what makes these rows last.
    async fn made_to_last<T>(
        &self,
        rows: &[i64],
        act: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<()> {
        self.doubtful.borrow_mut().extend(rows);
        let result = act.await;
        let is_refused = result.as_ref().is_err_and(|error| Cut::find(error).is_some());
        if result.is_ok() || is_refused {
            self.doubtful.borrow_mut().retain(|row| !rows.contains(row));
        }
        if result.is_ok() {
            self.lasting.borrow_mut().extend(rows);
        }
        result.map(drop)
    }

    fn compare(&self, rows: &BTreeSet<i64>) -> Result<(), TestCaseError> {
        let (lasting, doubtful) = (self.lasting.borrow(), self.doubtful.borrow());
        let lost: Vec<_> = lasting.difference(rows).collect();
        prop_assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let known = &*lasting | &*doubtful;
        let undead: Vec<_> = rows.difference(&known).collect();
        prop_assert!(undead.is_empty(), "undone and there: {undead:?}");
        Ok(())
    }
}

/// Polls a future at most so often.
pub(crate) async fn at_most<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        let Some(after) = left.checked_sub(1) else { return Poll::Ready(None) };
        left = after;
        let polled = future.as_mut().poll(cx).map(Some);
        if left == 0 && polled.is_pending() { Poll::Ready(None) } else { polled }
    })
    .await
}

/// Runs the programs one after the other on a pool of one connection, and after each compares the
/// rows that another connection finds.
macro_rules! rows_last {
    ($runtime:expr, $pool:expr, $admin:expr, $insert:literal) => {{
        let (runtime, pool, admin) = ($runtime, $pool, $admin);
        let (known, cuts) = (Known::default(), Cell::new(0_u32));
        let insert = |id: i64| sqlx::query($insert).bind(id);
        let run = async |steps: &[Step]| -> sqlx::Result<()> {
            for step in steps {
                match *step {
                    Step::Write => {
                        let id = known.number();
                        known.made_to_last(&[id], insert(id).execute(&pool)).await?;
                    }
                    Step::Read => drop(pool.fetch_all("SELECT id FROM lasting").await?),
                    Step::Yield => tokio::task::yield_now().await,
                    Step::Transaction { writes, savepoint, end } => {
                        let mut ids = Vec::new();
                        let mut transaction = pool.begin().await?;
                        for _ in 0..writes {
                            ids.push(known.number());
                            insert(ids[ids.len() - 1]).execute(&mut *transaction).await?;
                        }
                        if let Some(is_kept) = savepoint {
                            let id = known.number();
                            let mut inner = transaction.begin().await?;
                            insert(id).execute(&mut *inner).await?;
                            if is_kept {
                                inner.commit().await?;
                                ids.push(id);
                            } else {
                                inner.rollback().await?;
                            }
                        }
                        match end {
                            End::Commit => known.made_to_last(&ids, transaction.commit()).await?,
                            End::Rollback => transaction.rollback().await?,
                            End::Drop => drop(transaction),
                        }
                    }
                }
            }
            Ok(())
        };
        let test = async |steps: &[Step], fate: Fate| {
            let (polls, budget) = match fate {
                Fate::Dropped(polls) => (polls, Budget::new()),
                Fate::TooMany(most) => (u32::MAX, Budget::new().queries(Limit::hard(most))),
            };
            let ended = at_most(polls, run(steps).budgeted("program", budget)).await;
            match ended {
                None | Some(Err(_)) => cuts.set(cuts.get() + 1),
                Some(Ok(done)) => done.expect("what is not cut does not fail"),
            }
            // Whoever uses the pool next writes, and that lasts.
            let id = known.number();
            known.made_to_last(&[id], insert(id).execute(&pool)).await.expect("inserts");
            let rows = sqlx::query_scalar::<_, i64>("SELECT id FROM lasting").fetch_all(&admin);
            known.compare(&rows.await.expect("fetches").into_iter().collect())
        };
        let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config)
            .run(&programs(), |(steps, fate)| runtime.block_on(test(&steps, fate)));
        result.unwrap_or_else(|error| panic!("{error}"));
        assert!(cuts.get() > 60, "{} programs were cut", cuts.get());
        assert!(known.lasting.borrow().len() > 300, "the programs write");
    }};
}

fn postgres(url: &str) {
    let runtime = runtime(0);
    let (pool, admin) = runtime.block_on(async {
        let admin = PgPool::connect(url).await.expect("connects");
        let make = "DROP TABLE IF EXISTS lasting; CREATE TABLE lasting (id BIGINT PRIMARY KEY)";
        sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
        let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        (Pool::from(pool.connect(url).await.expect("connects")), admin)
    });
    rows_last!(runtime, pool, admin, "INSERT INTO lasting VALUES ($1)");
}

fn mariadb(url: &str) {
    let runtime = runtime(0);
    let (pool, admin) = runtime.block_on(async {
        let admin = MySqlPool::connect(url).await.expect("connects");
        let make = "DROP DATABASE IF EXISTS budget_rows; CREATE DATABASE budget_rows; \
                    CREATE TABLE budget_rows.lasting (id BIGINT PRIMARY KEY)";
        sqlx::raw_sql(make).execute(&admin).await.expect("makes a table");
        let options: sqlx::mysql::MySqlConnectOptions = url.parse().expect("a connection string");
        let options = options.database("budget_rows");
        let admin = MySqlPool::connect_with(options.clone()).await.expect("connects");
        let pool = MySqlPoolOptions::new().max_connections(1).test_before_acquire(false);
        (Pool::from(pool.connect_with(options).await.expect("connects")), admin)
    });
    rows_last!(runtime, pool, admin, "INSERT INTO lasting VALUES (?)");
}

fn sqlite_in_memory() {
    sqlite("sqlite:file:lasting?mode=memory&cache=shared".parse().expect("an address"));
}

fn sqlite_in_a_file() {
    let file = std::env::temp_dir().join(format!("request-budget-{}.db", std::process::id()));
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    sqlite(options.synchronous(SqliteSynchronous::Off));
    std::fs::remove_file(&file).expect("it was made");
}

fn sqlite(options: SqliteConnectOptions) {
    let runtime = runtime(0);
    let (pool, admin) = runtime.block_on(async {
        let admin = SqlitePool::connect_with(options.clone()).await.expect("connects");
        admin.execute("CREATE TABLE lasting (id INTEGER PRIMARY KEY)").await.expect("makes it");
        let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
        (Pool::from(pool.connect_with(options).await.expect("connects")), admin)
    });
    rows_last!(runtime, pool, admin, "INSERT INTO lasting VALUES ($1)");
}
