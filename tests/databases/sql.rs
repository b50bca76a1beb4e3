//! Random programs against an SQL server, and the tests that every one of them must pass.
//!
//! A macro and not a generic function: what sqlx asks of a database to bind and decode one integer
//! fills a page of bounds.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use request_budget::report::{Report, Reporter};
use request_budget::{Budget, BudgetExt, Usage, Violation};

pub(crate) use crate::steps::End;

/// How a server spells what the programs do. All statements name the table `budget_items`.
pub(crate) struct Dialect {
    pub(crate) create: &'static str,
    pub(crate) insert: &'static str,
    pub(crate) one: &'static str,
    /// Whether the witness sees a statement that fails when it is executed.
    pub(crate) failed_execution_is_seen_as: u64,
    /// How many statements the witness takes the batch of two for.
    pub(crate) batch_is_seen_as: u64,
    /// Two statements at once.
    pub(crate) batch: &'static str,
}

pub(crate) const ALL: &str = "SELECT id FROM budget_items ORDER BY id";
pub(crate) const NO_SUCH_COLUMN: &str = "SELECT nonsense FROM budget_items";

#[derive(Debug, Clone)]
pub(crate) enum Step {
    FetchOne,
    FetchOptional,
    FetchAll,
    /// How many rows are taken before the stream is dropped; `None` for all.
    Stream(Option<usize>),
    Execute,
    Batch,
    Prepare,
    NeverPolled,
    /// No such column, or a key that is there.
    Fails {
        at_execution: bool,
    },
    Transaction {
        steps: Vec<Self>,
        end: End,
    },
    Joined(usize),
    Carried,
    NotCarried,
}

pub(crate) fn programs() -> impl Strategy<Value = Vec<Step>> {
    let plain = prop_oneof![
        Just(Step::FetchOne),
        Just(Step::FetchOptional),
        Just(Step::FetchAll),
        prop::option::of(0..8_usize).prop_map(Step::Stream),
        Just(Step::Execute),
        Just(Step::Batch),
        Just(Step::Prepare),
        Just(Step::NeverPolled),
    ];
    let nested = plain.clone().prop_recursive(2, 6, 4, |inner| {
        let end = prop_oneof![Just(End::Commit), Just(End::Rollback), Just(End::Drop)];
        (prop::collection::vec(inner, 0..4), end)
            .prop_map(|(steps, end)| Step::Transaction { steps, end })
    });
    let step = prop_oneof![
        4 => plain,
        2 => nested,
        1 => any::<bool>().prop_map(|at_execution| Step::Fails { at_execution }),
        1 => (2..4_usize).prop_map(Step::Joined),
        1 => Just(Step::Carried),
        1 => Just(Step::NotCarried),
    ];
    prop::collection::vec(step, 1..8)
}

/// What the program itself knows of what it did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Rows that it was handed.
    pub(crate) rows: u64,
    pub(crate) transactions: u64,
    /// Statements that the witness leaves out: those that the server refused, and parts of batches.
    pub(crate) unseen: u64,
    /// Statements outside the unit of work.
    pub(crate) elsewhere: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Last(Arc<Mutex<Option<Usage>>>);

impl Reporter for Last {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        *self.0.lock().expect("not poisoned") = Some(report.usage());
    }
}

impl Last {
    /// The usage of the work that ended last.
    pub(crate) fn take(&self) -> Usage {
        self.0.lock().expect("not poisoned").take().expect("reported")
    }
}

pub(crate) async fn usage_of(work: impl Future<Output = ()>) -> Usage {
    let last = Last::default();
    let done = work.budgeted("program", Budget::new()).with_reporter(last.clone()).await;
    done.expect("no limit");
    last.take()
}

/// Makes `run_program` and `equal_the_server` for one database.
macro_rules! programs_on {
    ($database:ty, $dialect:expr) => {
        use futures_util::TryStreamExt as _;
        use request_budget::sqlx::{Connection, Pool};
        use sqlx::Executor as _;

        use crate::sql::{self, Done, End, Step};

        async fn run_program(steps: &[Step], pool: &Pool<$database>, done: &mut Done) {
            for step in steps {
                match step {
                    Step::Transaction { steps, end } => {
                        let mut transaction = pool.begin().await.expect("begins");
                        done.transactions += 1;
                        Box::pin(run_inside(steps, &mut transaction, done)).await;
                        match end {
                            End::Commit => transaction.commit().await.expect("commits"),
                            End::Rollback => transaction.rollback().await.expect("rolls back"),
                            End::Drop => drop(transaction),
                        }
                    }
                    Step::Fails { at_execution: true } => {
                        let twice = sqlx::query($dialect.insert).bind(1_i32);
                        twice.execute(pool).await.expect_err("a key that is there");
                        done.unseen += 1 - $dialect.failed_execution_is_seen_as;
                    }
                    Step::Fails { at_execution: false } => {
                        sqlx::query(sql::NO_SUCH_COLUMN)
                            .execute(pool)
                            .await
                            .expect_err("no column");
                        done.unseen += 1;
                    }
                    Step::Joined(count) => {
                        let ones = (0..*count).map(|_| async {
                            sqlx::query($dialect.one).bind(1_i32).fetch_one(pool).await
                        });
                        let ones = futures_util::future::try_join_all(ones).await.expect("fetches");
                        done.rows += ones.len() as u64;
                    }
                    Step::Carried => {
                        let pool = pool.clone();
                        let child = async move { sqlx::query(sql::ALL).fetch_all(&pool).await };
                        let rows = tokio::spawn(child.in_current_budget()).await.expect("no panic");
                        done.rows += rows.expect("fetches").len() as u64;
                    }
                    Step::NotCarried => {
                        let pool = pool.clone();
                        let child = async move { sqlx::query(sql::ALL).fetch_all(&pool).await };
                        tokio::spawn(child).await.expect("no panic").expect("fetches");
                        done.elsewhere += 1;
                    }
                    plain => {
                        let mut connection = pool.acquire().await.expect("acquires");
                        run_plain(plain, &mut connection, done).await;
                    }
                }
            }
        }

        async fn run_inside(
            steps: &[Step],
            connection: &mut Connection<$database>,
            done: &mut Done,
        ) {
            for step in steps {
                let Step::Transaction { steps, end } = step else {
                    run_plain(step, connection, done).await;
                    continue;
                };
                let mut savepoint = connection.begin().await.expect("makes a savepoint");
                done.transactions += 1;
                Box::pin(run_inside(steps, &mut savepoint, done)).await;
                match end {
                    End::Commit => savepoint.commit().await.expect("commits"),
                    End::Rollback => savepoint.rollback().await.expect("rolls back"),
                    End::Drop => drop(savepoint),
                }
            }
        }

        async fn run_plain(step: &Step, connection: &mut Connection<$database>, done: &mut Done) {
            match step {
                Step::FetchOne => {
                    sqlx::query($dialect.one)
                        .bind(1_i32)
                        .fetch_one(connection)
                        .await
                        .expect("fetches");
                    done.rows += 1;
                }
                Step::FetchOptional => {
                    let none = sqlx::query($dialect.one).bind(-1_i32).fetch_optional(connection);
                    assert!(none.await.expect("fetches").is_none());
                }
                Step::FetchAll => {
                    let rows = sqlx::query(sql::ALL).fetch_all(connection).await.expect("fetches");
                    done.rows += rows.len() as u64;
                }
                Step::Stream(take) => {
                    let mut left = take.unwrap_or(usize::MAX);
                    let mut rows = sqlx::query(sql::ALL).fetch(connection);
                    // Polled at least once: a stream that nobody polls executes nothing.
                    while rows.try_next().await.expect("fetches").is_some() {
                        done.rows += 1;
                        left = left.saturating_sub(1);
                        if left == 0 {
                            break;
                        }
                    }
                }
                Step::Execute => {
                    let update = "UPDATE budget_items SET hits = hits + 1";
                    sqlx::query(update).execute(connection).await.expect("executes");
                }
                Step::Batch => {
                    sqlx::raw_sql($dialect.batch).execute(connection).await.expect("executes");
                    done.unseen += 2 - $dialect.batch_is_seen_as;
                }
                Step::Prepare => {
                    let prepared = connection.prepare(sqlx::SqlStr::from_static(sql::ALL));
                    drop(prepared.await.expect("prepares"));
                }
                Step::NeverPolled => drop(sqlx::query(sql::ALL).fetch_all(connection)),
                _ => unreachable!("not a plain step: {step:?}"),
            }
        }

        /// 300 programs a runtime: what was counted is what the server's own statistics show.
        async fn equal_the_server(
            pool: &Pool<$database>,
            program: &[Step],
            executed: impl AsyncFn() -> u64,
        ) -> Result<(), proptest::test_runner::TestCaseError> {
            let raw = pool.unmetered();
            sqlx::query("DELETE FROM budget_items WHERE id > 20")
                .execute(raw)
                .await
                .expect("deletes");
            let before = executed().await;
            let mut done = Done::default();
            let usage = sql::usage_of(run_program(program, pool, &mut done)).await;
            let seen = executed().await - before;
            proptest::prop_assert_eq!(usage.queries, seen + done.unseen - done.elsewhere);
            proptest::prop_assert_eq!(usage.rows, done.rows);
            proptest::prop_assert_eq!(usage.transactions, done.transactions);
            Ok(())
        }

        /// A table of twenty rows, made anew.
        async fn make_table(pool: &Pool<$database>) {
            let raw = pool.unmetered();
            sqlx::query("DROP TABLE IF EXISTS budget_items").execute(raw).await.expect("drops");
            sqlx::query($dialect.create).execute(raw).await.expect("creates");
            for id in 1..=20_i32 {
                sqlx::query($dialect.insert).bind(id).execute(raw).await.expect("inserts");
            }
        }
    };
}
pub(crate) use programs_on;
