//! SQLite: random programs against what the program itself knows, and what a cut leaves behind.

use std::future::pending;

use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, Usage};
use sqlx::Executor;
use tokio::sync::oneshot;

use crate::{Ledger, pool};

/// A generator of numbers that are random enough to mix operations (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a program has done by its own count; `items` is how many rows the table has.
#[derive(Debug, Default, PartialEq)]
struct Done {
    queries: u64,
    rows: u64,
    transactions: u64,
    writes: u64,
    items: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_programs_are_counted_as_they_count_themselves() {
    const INSERT: &str = "INSERT INTO items DEFAULT VALUES";
    for seed in 1..=200 {
        let (ledger, pool) = (Ledger::default(), pool(2).await);
        let program = async {
            let (mut random, mut done) = (Random(seed), Done { items: 2, ..Done::default() });
            for _ in 0..random.below(12) {
                match random.below(5) {
                    0 => {
                        pool.execute(INSERT).await.expect("inserts");
                        (done.queries, done.writes) = (done.queries + 1, done.writes + 1);
                        done.items += 1;
                    }
                    1 => {
                        let rows = pool.fetch_all("SELECT id FROM items").await.expect("selects");
                        assert_eq!(rows.len() as u64, done.items);
                        (done.queries, done.rows) = (done.queries + 1, done.rows + done.items);
                    }
                    2 => {
                        pool.execute("SELECT nothing FROM nowhere").await.expect_err("no table");
                        done.queries += 1;
                    }
                    3 => {
                        let mut connection = pool.acquire().await.expect("it is free");
                        let one = sqlx::query("SELECT 1").fetch_one(&mut *connection).await;
                        one.expect("selects");
                        (done.queries, done.rows) = (done.queries + 1, done.rows + 1);
                    }
                    _ => {
                        let mut transaction = pool.begin().await.expect("begins");
                        transaction.execute(INSERT).await.expect("inserts");
                        (done.queries, done.writes) = (done.queries + 1, done.writes + 1);
                        done.transactions += 1;
                        match random.below(3) {
                            0 => {
                                transaction.commit().await.expect("commits");
                                done.items += 1;
                            }
                            1 => transaction.rollback().await.expect("rolls back"),
                            _ => drop(transaction),
                        }
                    }
                }
            }
            done
        };
        let program = program.budgeted("program", Budget::new()).with_reporter(ledger.clone());
        let done = program.await.expect("no limit");
        let (_, outcome, usage) = ledger.end();
        let Usage { queries, rows, transactions, writes, .. } = usage;
        let items = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM items").fetch_one(&pool);
        let items = items.await.expect("the connection is free").cast_unsigned();
        let counted = Done { queries, rows, transactions, writes, items };
        assert_eq!((outcome, counted), (Outcome::Ok, done), "seed {seed}");
        assert_eq!(usage.unmetered, 0, "seed {seed}");
    }
}

#[tokio::test]
async fn a_transaction_of_work_that_is_dropped_is_rolled_back() {
    let (ledger, pool) = (Ledger::default(), pool(1).await);
    let (delete, is_deleted) = oneshot::channel();
    let work = async {
        let mut transaction = pool.begin().await.expect("begins");
        transaction.execute("DELETE FROM items").await.expect("deletes");
        delete.send(()).expect("it is waited for");
        pending::<()>().await;
        transaction.commit().await.expect("it does not come to this");
    };
    let work = work.budgeted("impatient", Budget::new()).with_reporter(ledger.clone());
    tokio::select! {
        result = work => panic!("it never ends: {result:?}"),
        deleted = is_deleted => deleted.expect("it was executed"),
    }
    let (_, outcome, usage) = ledger.end();
    assert_eq!((outcome, usage.queries, usage.transactions), (Outcome::Cancelled, 1, 1));
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM items").fetch_one(&pool).await;
    assert_eq!(count.expect("the connection comes back"), 1);
}
