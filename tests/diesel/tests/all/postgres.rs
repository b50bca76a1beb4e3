//! diesel-async on PostgreSQL: the count against the server's own statistics.

use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::bb8::{Pool, PooledConnection};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, TryStreamExt};
use proptest::test_runner::TestCaseError;
use request_budget::db::Query;
use request_budget::report::{Report, Reporter};
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, Usage, Violation};
use tokio_postgres::{Client, NoTls};

use crate::program::{Done, Step, Use, programs, three_hundred};
use crate::{ServerTest, runtime};

pub(crate) const TESTS: &[ServerTest] = &[
    ("counts_what_postgres_executes_on_one_thread", |url| equal(url, 0)),
    ("counts_what_postgres_executes_on_two_threads", |url| equal(url, 2)),
    ("tells_fifty_requests_apart_on_postgres", fifty_at_once),
    ("counts_no_set_up_of_a_connection_to_postgres", set_up),
    ("cuts_past_a_hard_limit_on_postgres", cut),
    ("names_what_work_waits_for_that_is_cut_on_postgres", cut_midway),
    ("charges_the_time_until_the_result_on_postgres", time),
    ("charges_the_unit_of_work_in_which_a_statement_began_on_postgres", another_work),
    ("is_measured_with_places_on_postgres", measured),
];

diesel::table! {
    budget_items (id) {
        id -> Integer,
        hits -> Integer,
    }
}

const UPDATE: &str = "UPDATE budget_items SET hits = hits + 1";
const BATCH: &str = "UPDATE budget_items SET hits = 0; SELECT count(*) FROM budget_items";
const INSERT: &str = "INSERT INTO budget_items VALUES (1, 0)";
const NO_SUCH_COLUMN: &str = "SELECT no_such_column FROM budget_items";

/// What the server has executed, by its own statistics, on a connection that Diesel knows nothing
/// of.
struct Witness {
    client: Client,
    pool: Pool<AsyncPgConnection>,
    name: &'static str,
}

impl Witness {
    async fn new(url: &str, name: &'static str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
        tokio::spawn(connection);
        for statement in [
            "CREATE EXTENSION IF NOT EXISTS pg_stat_statements".to_owned(),
            format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
            format!("CREATE DATABASE {name}"),
        ] {
            client.batch_execute(&statement).await.expect("executes");
        }
        let (server, _) = url.rsplit_once('/').expect("a database");
        let manager =
            AsyncDieselConnectionManager::<AsyncPgConnection>::new(format!("{server}/{name}"));
        let pool = Pool::builder().max_size(3).test_on_check_out(false);
        let pool = pool.build(manager).await.expect("connects");
        let table = "CREATE TABLE budget_items (id int PRIMARY KEY, hits int NOT NULL);
            INSERT INTO budget_items SELECT generate_series(1, 20), 0";
        pool.get().await.expect("connects").batch_execute(table).await.expect("executes");
        Self { client, pool, name }
    }

    async fn get(&self) -> PooledConnection<'_, AsyncPgConnection> {
        self.pool.get().await.expect("connects")
    }

    /// How many statements on our table, and how many transactions and savepoints.
    async fn executed(&self) -> (u64, u64) {
        // Whatever is still on its way to the server is over once every connection answers.
        for mut connection in join_all((0..3).map(|_| self.get())).await {
            connection.batch_execute("SELECT 0").await.expect("answers");
        }
        let calls = "SELECT
            coalesce(sum(calls) FILTER (WHERE query LIKE '%budget_items%'), 0)::bigint,
            coalesce(sum(calls) FILTER (WHERE query ~ '^(BEGIN|SAVEPOINT)'), 0)::bigint
            FROM pg_stat_statements AS seen JOIN pg_database ON pg_database.oid = seen.dbid
            WHERE datname = $1";
        let row = self.client.query_one(calls, &[&self.name]).await.expect("counts");
        (row.get::<_, i64>(0).cast_unsigned(), row.get::<_, i64>(1).cast_unsigned())
    }
}

async fn run_use(what: Use, connection: &mut AsyncPgConnection, done: &mut Done) {
    done.note(what, false);
    match what {
        Use::Load => {
            let all = budget_items::table.select(budget_items::id).load::<i32>(connection);
            assert_eq!(all.await.expect("loads").len(), 20);
        }
        Use::One(id) => {
            let one = one(id).get_result::<i32>(connection);
            assert_eq!(one.await.expect("loads"), id);
        }
        Use::Some(up_to, take) => {
            let some = budget_items::table.filter(budget_items::id.le(up_to));
            let rows = some.load_stream::<(i32, i32)>(connection).await.expect("loads");
            let mut rows = std::pin::pin!(rows);
            let mut left = take;
            while left > 0 && rows.try_next().await.expect("loads").is_some() {
                left -= 1;
            }
        }
        Use::Update => {
            let update = diesel::sql_query(UPDATE).execute(connection);
            assert_eq!(update.await.expect("executes"), 20);
        }
        Use::Batch => connection.batch_execute(BATCH).await.expect("executes"),
        Use::FailsAtExecution => {
            diesel::sql_query(INSERT).execute(connection).await.expect_err("the key is there");
        }
        Use::FailsAtPrepare => {
            let select = diesel::sql_query(NO_SUCH_COLUMN).execute(connection);
            select.await.expect_err("no column");
        }
    }
}

type One = diesel::dsl::Select<
    diesel::dsl::Filter<budget_items::table, diesel::dsl::Eq<budget_items::id, i32>>,
    budget_items::id,
>;

fn one(id: i32) -> One {
    budget_items::table.filter(budget_items::id.eq(id)).select(budget_items::id)
}

/// A transaction that is to be rolled back ends in an error.
#[derive(Debug)]
struct RolledBack;

impl From<diesel::result::Error> for RolledBack {
    fn from(error: diesel::result::Error) -> Self {
        panic!("{error}")
    }
}

fn transaction<'a>(
    connection: &'a mut AsyncPgConnection,
    uses: &'a [Use],
    inner: Option<&'a Step>,
    commits: bool,
    done: &'a mut Done,
) -> BoxFuture<'a, ()> {
    async move {
        done.transactions += 1;
        let ended = connection
            .transaction(async |connection| {
                for what in uses {
                    run_use(*what, connection, done).await;
                }
                if let Some(Step::Transaction(uses, inner, commits)) = inner {
                    transaction(connection, uses, inner.as_deref(), *commits, done).await;
                }
                if commits { Ok(()) } else { Err(RolledBack) }
            })
            .await;
        assert_eq!(ended.is_ok(), commits);
    }
    .boxed()
}

async fn run_program(program: &[Step], witness: &Witness, done: &mut Done) {
    for step in program {
        let mut connection = witness.get().await;
        match step {
            Step::One(what) => run_use(*what, &mut connection, done).await,
            Step::Transaction(uses, inner, commits) => {
                transaction(&mut connection, uses, inner.as_deref(), *commits, done).await;
            }
            Step::Nested(uses) => {
                let mut inner = Done::default();
                let work = async {
                    for what in uses {
                        run_use(*what, &mut connection, &mut inner).await;
                    }
                    Usage::current().expect("inside")
                };
                let usage = work.budgeted("inner", Budget::new()).await.expect("no limit");
                inner.check(&usage).expect("the inner work counts for itself as well");
                done.add(inner);
            }
            Step::Pipelined(count) => {
                let shared = &*connection;
                let all = (1..).take(*count).map(|id| async move {
                    let mut shared = shared;
                    one(id).get_result::<i32>(&mut shared).await.expect("loads")
                });
                join_all(all).await;
                (0..*count).for_each(|_| done.note(Use::One(1), false));
            }
            Step::Dropped => {
                // Once prepared it is sent by the first poll, which hardly ever finds it answered.
                run_use(Use::One(1), &mut connection, done).await;
                let mut sent = one(1).get_result::<i32>(&mut *connection).boxed();
                let _ = (&mut sent).now_or_never();
                drop(sent);
                done.note(Use::One(1), false);
            }
            Step::NeverPolled => {
                drop(one(1).get_result::<i32>(&mut *connection));
                done.note(Use::One(1), false);
                done.unseen += 1;
            }
            Step::DroppedTransaction(what) => {
                let (within, is_within) = tokio::sync::oneshot::channel::<()>();
                let work = connection.transaction(async |connection| {
                    run_use(*what, connection, done).await;
                    // The server counts what was executed once the next one takes its place.
                    run_use(Use::Batch, connection, done).await;
                    drop(within);
                    std::future::pending::<QueryResult<()>>().await
                });
                futures_util::future::select(work.boxed(), is_within).await;
                done.transactions += 1;
            }
            Step::Carried(what) => {
                let (what, pool) = (*what, witness.pool.clone());
                // There are three connections, and one of them is ours.
                let child = request_budget::task::spawn(async move {
                    let mut done = Done::default();
                    let mut connection = pool.get().await.expect("connects");
                    run_use(what, &mut connection, &mut done).await;
                    done
                });
                done.add(child.await.expect("no panic"));
            }
            Step::NotCarried(what) => {
                let (what, pool) = (*what, witness.pool.clone());
                let child = tokio::spawn(async move {
                    let mut connection = pool.get().await.expect("connects");
                    run_use(what, &mut connection, &mut Done::default()).await;
                });
                child.await.expect("no panic");
                done.uncounted += 1 + u64::from(what == Use::Batch);
                done.unattributed += 1;
            }
        }
    }
}

async fn equals_the_server(program: &[Step], witness: &Witness) -> Result<(), TestCaseError> {
    let before = witness.executed().await;
    let unattributed = Query::unattributed();
    let mut done = Done::default();
    let work = async {
        run_program(program, witness, &mut done).await;
        Usage::current().expect("inside")
    };
    let usage = work.budgeted("program", Budget::new()).await.expect("no limit");
    let unattributed = Query::unattributed() - unattributed;
    let (statements, transactions) = witness.executed().await;
    done.check(&usage)?;
    done.check_witness(&usage, statements - before.0)?;
    assert_eq!(usage.transactions, transactions - before.1, "{usage:?}");
    // Other tests run at the same time.
    assert!(unattributed >= done.unattributed, "{unattributed} of {done:?}");
    Ok(())
}

fn equal(url: &str, workers: usize) {
    let runtime = runtime(workers);
    let name = if workers == 0 { "diesel_one" } else { "diesel_two" };
    let witness = runtime.block_on(Witness::new(url, name));
    let result = three_hundred()
        .run(&programs(), |program| runtime.block_on(equals_the_server(&program, &witness)));
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn fifty_at_once(url: &str) {
    runtime(2).block_on(async {
        let witness = &*Box::leak(Box::new(Witness::new(url, "diesel_fifty").await));
        let (before, _) = witness.executed().await;
        let request = |n: u64| {
            let work = async move {
                let mut done = Done::default();
                for _ in 0..n % 7 {
                    let mut connection = witness.get().await;
                    run_use(Use::Load, &mut connection, &mut done).await;
                }
                let program = [Step::Dropped, Step::Pipelined(2), Step::One(Use::Update)];
                run_program(&program[..n as usize % 4], witness, &mut done).await;
                let usage = Usage::current().expect("inside");
                done.check(&usage).expect("counts its own");
                usage.queries
            };
            tokio::spawn(work.budgeted("request", Budget::new()))
        };
        let mut all = 0;
        for request in join_all((0..50).map(request)).await {
            all += request.expect("no panic").expect("no limit");
        }
        assert_eq!(all, witness.executed().await.0 - before);
    });
}

/// A connection that is made in a request sets itself up there; what else is executed on it counts.
fn set_up(url: &str) {
    runtime(0).block_on(async {
        let work = async {
            let mut connection = AsyncPgConnection::establish(url).await.expect("connects");
            diesel::sql_query("SELECT 1").execute(&mut connection).await.expect("executes");
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
            let made = AsyncPgConnection::try_from_client_and_connection(client, connection);
            let mut connection = made.await.expect("connects");
            diesel::sql_query("SELECT 1").execute(&mut connection).await.expect("executes");
            let again = diesel::sql_query("SET TIME ZONE 'UTC'").execute(&mut connection);
            again.await.expect("executes");
            Usage::current().expect("inside")
        };
        let usage = work.budgeted("request", Budget::new()).await.expect("no limit");
        assert_eq!((usage.queries, usage.repeated_queries), (3, 2), "{usage:?}");
    });
}

fn cut(url: &str) {
    runtime(0).block_on(async {
        let witness = Witness::new(url, "diesel_cut").await;
        let (before, _) = witness.executed().await;
        let work = async {
            let mut connection = witness.get().await;
            loop {
                run_use(Use::Load, &mut connection, &mut Done::default()).await;
            }
        };
        let work = work.budgeted("loop", Budget::new().queries(Limit::hard(3)));
        let cut: Cut = match work.await {
            Ok(never) => never,
            Err(cut) => cut,
        };
        assert!(cut.to_string().starts_with("loop was cut: 4 queries, limit 3"), "{cut}");
        // It is counted before it is sent, by the poll that is the last one.
        let seen = witness.executed().await.0 - before;
        assert!((3..=4).contains(&seen), "{seen}");
    });
}

/// Sends what was used at the end.
struct Ends(Sender<Usage>);

impl Reporter for Ends {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.send(report.usage()).expect("is waited for");
    }
}

fn cut_midway(url: &str) {
    runtime(0).block_on(async {
        let mut connection = AsyncPgConnection::establish(url).await.expect("connects");
        let (end, ended) = mpsc::channel();
        let work = async {
            let sleep = diesel::sql_query("SELECT pg_sleep(60)").execute(&mut connection);
            sleep.await.expect("executes");
        };
        let limit = Duration::from_millis(300);
        let work = work.budgeted("sleep", Budget::new().total_time(limit));
        let cut = work.with_reporter(Ends(end)).await.expect_err("it takes a minute");
        assert_eq!(cut.violation().resource, Resource::TotalTime);
        assert!(cut.to_string().contains("`SELECT pg_sleep(60)`, in flight for"), "{cut}");
        let usage = ended.recv().expect("it has ended");
        assert_eq!(usage.queries, 1);
        assert!(usage.query_time > limit / 2, "{usage:?}");
        assert_eq!(usage.slow_query, usage.query_time);
    });
}

fn time(url: &str) {
    runtime(0).block_on(async {
        let mut connection = AsyncPgConnection::establish(url).await.expect("connects");
        let work = async {
            for _ in 0..2 {
                let sleep = diesel::sql_query("SELECT pg_sleep(0.05)").execute(&mut connection);
                sleep.await.expect("executes");
            }
            let unfinished = diesel::sql_query("SELECT pg_sleep(60)").execute(&mut connection);
            drop(unfinished);
            Usage::current().expect("inside")
        };
        let usage = work.budgeted("sleep", Budget::new()).await.expect("no limit");
        assert_eq!(usage.queries, 3);
        assert!(usage.query_time >= Duration::from_millis(100), "{usage:?}");
        assert!(usage.slow_query >= Duration::from_millis(50), "{usage:?}");
        assert!(usage.slow_query <= usage.query_time - Duration::from_millis(50), "{usage:?}");
    });
}

/// A future that is made in one unit of work and goes on in another belongs to the first; what is
/// left of one that was dropped keeps nothing of its work, and is no part of the next.
#[expect(clippy::async_yields_async, reason = "it is to go on in another work")]
fn another_work(url: &str) {
    runtime(0).block_on(async {
        let mut connection = AsyncPgConnection::establish(url).await.expect("connects");
        let made = async {
            let sleep = diesel::sql_query("SELECT pg_sleep(60)").execute(&mut connection);
            drop(sleep);
            Usage::current().expect("inside").queries
        };
        assert_eq!(made.budgeted("first", Budget::new()).await, Ok(1));
        let work = async {
            diesel::sql_query("SELECT 1").execute(&mut connection).await.expect("executes");
            Usage::current().expect("inside").queries
        };
        assert_eq!(work.budgeted("second", Budget::new()).await, Ok(1));

        let outer = async {
            let shared = &connection;
            let inner = async {
                let mut shared = shared;
                diesel::sql_query("SELECT pg_sleep(0.02)").execute(&mut shared)
            };
            let begun = inner.budgeted("inner", Budget::new()).await.expect("no limit");
            begun.await.expect("executes");
            Usage::current().expect("inside").queries
        };
        assert_eq!(outer.budgeted("outer", Budget::new()).await, Ok(1));
    });
}

fn measured(url: &str) {
    const LINE: u32 = line!() + 7;
    runtime(2).block_on(async {
        let witness = Witness::new(url, "diesel_measured").await;
        let (before, _) = witness.executed().await;
        let mut connection = witness.get().await;
        let work = async {
            for id in 1..=4 {
                one(id).get_result::<i32>(&mut *connection).await.expect("loads");
            }
            run_use(Use::Load, &mut connection, &mut Done::default()).await;
        };
        let record = measure(work).await;
        drop(connection);
        let seen = witness.executed().await.0 - before;
        assert_eq!((record.usage().queries, record.usage().observed), (seen, 5));
        record.assert_queries(5);
        record.assert_no_unmetered();
        let [_, one] = record.statements() else { panic!("{:?}", record.statements()) };
        let place = &one.sites()[0].places[0];
        assert_eq!((&*place.file, place.line), ("tests/all/postgres.rs", LINE));
        assert_eq!((one.executions, one.text.contains("binds")), (4, false));
    });
}
