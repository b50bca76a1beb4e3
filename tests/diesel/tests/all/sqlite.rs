//! Diesel on SQLite: the count against a function that SQLite itself calls in each statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use futures_util::future::join_all;
use proptest::test_runner::TestCaseError;
use request_budget::db::Query;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Usage, task};

use crate::program::{Done, Step, Use, programs, three_hundred};
use crate::{Test, runtime};

pub(crate) const TESTS: &[Test] = &[
    ("counts_what_sqlite_executes", equal),
    ("tells_fifty_requests_apart_on_sqlite", fifty_at_once),
    ("cuts_past_a_hard_limit_on_sqlite", cut),
    ("what_blocks_elsewhere_counts_where_it_is_carried_or_is_unattributed", elsewhere),
    ("counts_what_deadpool_runs_on_its_threads", deadpool),
    ("is_measured_with_places_on_sqlite", measured),
    ("a_connection_keeps_nothing_of_work_that_is_over", keeps_nothing),
];

#[diesel::declare_sql_function]
extern "SQL" {
    /// Is called once by each execution of a statement below.
    fn witness() -> Integer;
}

const LOAD: &str = "SELECT id FROM items WHERE (SELECT witness()) = 1";
const ONE: &str = "SELECT id FROM items WHERE (SELECT witness()) = 1 AND id = ?";
const SOME: &str = "SELECT id FROM items WHERE (SELECT witness()) = 1 AND id <= ?";
const UPDATE: &str = "UPDATE items SET hits = hits + 1 WHERE (SELECT witness()) = 1";
const BATCH: &str = "UPDATE items SET hits = 0 WHERE (SELECT witness()) = 1;
    SELECT count(*) FROM items WHERE (SELECT witness()) = 1";
const INSERT: &str = "INSERT INTO items SELECT 1, 0 WHERE (SELECT witness()) = 1";
const NO_SUCH_COLUMN: &str = "SELECT no_such_column FROM items WHERE (SELECT witness()) = 1";

#[derive(QueryableByName)]
struct Item {
    #[diesel(sql_type = Integer)]
    id: i32,
}

/// A database of its own, and how many statements SQLite has executed there.
fn open() -> (SqliteConnection, Arc<AtomicU64>) {
    let mut connection = SqliteConnection::establish(":memory:").expect("opens");
    let executed = Arc::new(AtomicU64::new(0));
    let count = executed.clone();
    witness_utils::register_nondeterministic_impl(&connection, move || {
        count.fetch_add(1, Relaxed);
        1
    })
    .expect("registers");
    let table = "CREATE TABLE items (id integer PRIMARY KEY, hits integer NOT NULL);
        INSERT INTO items WITH RECURSIVE ids (id) AS
            (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 20) SELECT id, 0 FROM ids";
    connection.batch_execute(table).expect("executes");
    (connection, executed)
}

fn run_use(what: Use, connection: &mut SqliteConnection, done: &mut Done) {
    done.note(what, true);
    match what {
        Use::Load => {
            let all = diesel::sql_query(LOAD).load::<Item>(connection).expect("loads");
            assert_eq!(all.len(), 20);
        }
        Use::One(id) => {
            let one = diesel::sql_query(ONE).bind::<Integer, _>(id);
            assert_eq!(one.get_result::<Item>(connection).expect("loads").id, id);
        }
        Use::Some(up_to, take) => {
            let some = diesel::sql_query(SOME).bind::<Integer, _>(up_to);
            let rows = some.load_iter::<Item, _>(connection).expect("loads");
            // SQLite begins with the first row.
            rows.take(take.max(1)).for_each(|row| assert!(row.expect("loads").id <= up_to));
        }
        Use::Update => {
            let update = diesel::sql_query(UPDATE).execute(connection);
            assert_eq!(update.expect("executes"), 20);
        }
        Use::Batch => connection.batch_execute(BATCH).expect("executes"),
        Use::FailsAtExecution => {
            diesel::sql_query(INSERT).execute(connection).expect_err("the key is there");
        }
        Use::FailsAtPrepare => {
            diesel::sql_query(NO_SUCH_COLUMN).execute(connection).expect_err("no column");
        }
    }
}

/// A transaction that is to be rolled back ends in an error.
#[derive(Debug)]
struct RolledBack;

impl From<diesel::result::Error> for RolledBack {
    fn from(error: diesel::result::Error) -> Self {
        panic!("{error}")
    }
}

fn run_step(step: &Step, connection: &mut SqliteConnection, done: &mut Done) {
    match step {
        Step::One(what) => run_use(*what, connection, done),
        Step::Transaction(uses, inner, commits) => {
            done.transactions += 1;
            let ended = connection.transaction(|connection| {
                uses.iter().for_each(|what| run_use(*what, connection, done));
                if let Some(inner) = inner {
                    run_step(inner, connection, done);
                }
                if *commits { Ok(()) } else { Err(RolledBack) }
            });
            assert_eq!(ended.is_ok(), *commits);
        }
        Step::Nested(uses) => {
            let mut inner = Done::default();
            let work = || {
                uses.iter().for_each(|what| run_use(*what, connection, &mut inner));
                Usage::current().expect("inside")
            };
            let usage = task::blocking("inner", Budget::new(), work).expect("no limit");
            inner.check(&usage).expect("the inner work counts for itself as well");
            done.add(inner);
        }
        // What futures can do, and Diesel itself cannot.
        Step::Pipelined(_) | Step::Dropped | Step::NeverPolled => {}
        // One by hand, which is no transaction that Diesel knows of.
        Step::DroppedTransaction(what) => {
            connection.batch_execute("BEGIN IMMEDIATE").expect("begins");
            run_use(*what, connection, done);
            connection.batch_execute("ROLLBACK").expect("rolls back");
        }
        Step::Carried(what) => {
            let mut child = Done::default();
            std::thread::scope(|threads| {
                let run = || run_use(*what, connection, &mut child);
                threads.spawn(task::carried(run)).join().expect("no panic");
            });
            done.add(child);
        }
        Step::NotCarried(what) => {
            std::thread::scope(|threads| {
                let run = || run_use(*what, connection, &mut Done::default());
                threads.spawn(run).join().expect("no panic");
            });
            let is_seen = *what != Use::FailsAtPrepare;
            done.uncounted += u64::from(is_seen) + u64::from(*what == Use::Batch);
            done.unattributed += 1;
        }
    }
}

fn equals_sqlite(
    program: &[Step],
    connection: &mut SqliteConnection,
    executed: &AtomicU64,
) -> Result<(), TestCaseError> {
    let before = executed.load(Relaxed);
    let unattributed = Query::unattributed();
    let mut done = Done::default();
    let work = || {
        program.iter().for_each(|step| run_step(step, connection, &mut done));
        Usage::current().expect("inside")
    };
    let usage = task::blocking("program", Budget::new(), work).expect("no limit");
    done.check(&usage)?;
    done.check_witness(&usage, executed.load(Relaxed) - before)?;
    // Other tests run at the same time.
    assert!(Query::unattributed() - unattributed >= done.unattributed, "{done:?}");
    Ok(())
}

fn equal() {
    let connection = std::cell::RefCell::new(open());
    let result = three_hundred().run(&programs(), |program| {
        let (connection, executed) = &mut *connection.borrow_mut();
        equals_sqlite(&program, connection, executed)
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn fifty_at_once() {
    runtime(2).block_on(async {
        let request = |n: usize| {
            let work = async move {
                let blocking = task::spawn_blocking(move || {
                    let ((mut connection, executed), mut done) = (open(), Done::default());
                    for _ in 0..n % 7 {
                        run_use(Use::One(3), &mut connection, &mut done);
                    }
                    executed.load(Relaxed)
                });
                let executed = blocking.await.expect("no panic");
                let usage = Usage::current().expect("inside");
                // The table is made in the request as well.
                assert_eq!((usage.queries, executed), (n as u64 % 7 + 1, n as u64 % 7));
            };
            tokio::spawn(work.budgeted("request", Budget::new()))
        };
        for request in join_all((0..50).map(request)).await {
            request.expect("no panic").expect("no limit");
        }
    });
}

/// Between two polls where it is called in a future, and while the future waits where it is called
/// elsewhere.
fn cut() {
    runtime(0).block_on(async {
        let (mut connection, executed) = open();
        let work = async {
            loop {
                run_use(Use::Load, &mut connection, &mut Done::default());
                tokio::task::yield_now().await;
            }
        };
        let work = work.budgeted("loop", Budget::new().queries(Limit::hard(3)));
        let cut: Cut = match work.await {
            Ok(never) => never,
            Err(cut) => cut,
        };
        assert!(cut.to_string().starts_with("loop was cut: 4 queries, limit 3"), "{cut}");
        assert_eq!(executed.load(Relaxed), 4);

        let (end, ended) = std::sync::mpsc::channel();
        let work = async move {
            let blocking = task::spawn_blocking(move || {
                while task::checkpoint().is_ok() {
                    run_use(Use::Load, &mut connection, &mut Done::default());
                }
                end.send(()).expect("is waited for");
                std::future::pending::<()>()
            });
            blocking.await.expect("no panic").await;
        };
        let work = work.budgeted("thread", Budget::new().queries(Limit::hard(3)));
        let cut = work.await.expect_err("it is cut");
        assert!(cut.to_string().starts_with("thread was cut: 4 queries, limit 3"), "{cut}");
        ended.recv().expect("the closure sees the cut");
        assert_eq!(executed.load(Relaxed), 8);
    });
}

fn elsewhere() {
    runtime(0).block_on(async {
        let (mut connection, executed) = open();
        let before = Query::unattributed();
        let work = async {
            let plain = tokio::task::spawn_blocking(move || {
                run_use(Use::Load, &mut connection, &mut Done::default());
                connection
            });
            let mut connection = plain.await.expect("no panic");
            assert_eq!(Usage::current().expect("inside").queries, 0);
            let carried = task::spawn_blocking(move || {
                run_use(Use::Load, &mut connection, &mut Done::default());
            });
            carried.await.expect("no panic");
            Usage::current().expect("inside").queries
        };
        assert_eq!(work.budgeted("request", Budget::new()).await, Ok(1));
        assert!(Query::unattributed() > before);
        assert_eq!(executed.load(Relaxed), 2);
    });
}

fn deadpool() {
    runtime(0).block_on(async {
        let runtime = deadpool_diesel::Runtime::Tokio1;
        let manager = deadpool_diesel::sqlite::Manager::new(":memory:", runtime);
        let pool = deadpool_diesel::sqlite::Pool::builder(manager).max_size(1).build();
        let pool = pool.expect("is made");
        let work = async {
            let connection = pool.get().await.expect("opens");
            let one = |connection: &mut SqliteConnection| connection.batch_execute("SELECT 1");
            let counted = connection.interact(task::carried_with(one)).await;
            counted.expect("no panic").expect("executes");
            Usage::current().expect("inside").queries
        };
        assert_eq!(work.budgeted("request", Budget::new()).await, Ok(1));
    });
}

fn measured() {
    const LINE: u32 = line!() + 5;
    runtime(0).block_on(async {
        let (mut connection, _) = open();
        let work = async {
            let run = move || {
                (1..=4).for_each(|id| run_use(Use::One(id), &mut connection, &mut Done::default()))
            };
            task::spawn_blocking(run).await.expect("no panic");
        };
        let record = measure(work).await;
        record.assert_queries(4);
        record.assert_no_unmetered();
        let [one] = record.statements() else { panic!("{:?}", record.statements()) };
        // Values are folded out of the text.
        let text = ONE.replace("= 1", "= ?");
        assert_eq!((&*one.text, one.executions, one.repetitions), (&*text, 4, 4));
        let places = one.sites()[0].places.clone();
        assert!(places.iter().all(|place| place.file == "tests/all/sqlite.rs"), "{places:?}");
        assert!(places.iter().any(|place| place.line == LINE), "{places:?}, {LINE}");
    });
}

/// Nor is anything of the statements of one request part of the memory of the next.
fn keeps_nothing() {
    let (mut connection, _) = open();
    let mut retained = |times: usize| {
        let work = || {
            for _ in 0..times {
                run_use(Use::One(7), &mut connection, &mut Done::default());
            }
            Usage::current().expect("inside").retained.expect("memory is measured")
        };
        task::blocking("request", Budget::new(), work).expect("no limit")
    };
    retained(1);
    assert_eq!((retained(1), retained(20)), (0, 0));
}
