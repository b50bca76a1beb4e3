//! Times, to the nanosecond: the clock stands still, and SQLite waits at a gate.

use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join;
use futures_util::{FutureExt, StreamExt};
use request_budget::db::Query;
use request_budget::db::sqlx::{Connection, Pool};
use request_budget::report::Outcome;
use request_budget::resource::Amount;
use request_budget::{Budget, BudgetExt, Limit, Resource, Usage, Violation};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};
use sqlx::{ConnectOptions, Executor, Sqlite};
use tokio::task::JoinHandle;
use tokio::time::advance;
use tracing::Instrument;

use crate::account::Ledger;
use crate::usage_of;
use crate::witness::Witness;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Where a statement waits inside SQLite, on the thread of its connection, until it is let through.
struct Gate {
    arrivals: Receiver<()>,
    passes: Sender<()>,
}

impl Gate {
    /// A gate, and what to call where it stands.
    fn new() -> (Self, impl Fn() + Send + Sync) {
        let ((arrived, arrivals), (passes, pass)) = (channel(), channel());
        let (arrived, pass) = (Mutex::new(arrived), Mutex::new(pass));
        let stand = move || {
            // Once the gate is gone there is nothing to wait for.
            if arrived.lock().unwrap().send(()).is_ok() {
                let _gone: Result<(), _> = pass.lock().unwrap().recv();
            }
        };
        (Self { arrivals, passes }, stand)
    }

    /// Waits until a statement has come to the gate.
    fn arrived(&self) {
        self.arrivals.recv().expect("the statement comes to the gate");
    }

    /// Lets it through.
    fn pass(&self) {
        self.passes.send(()).expect("the gate stands");
    }
}

/// A statement that waits at the gate before each of its three rows.
const GATED: &str = "SELECT value FROM words WHERE value > '' COLLATE gate";

/// How to connect to a database with a gate in it, and the gate.
fn gated() -> (SqliteConnectOptions, Gate) {
    let (gate, stand) = Gate::new();
    let options = SqliteConnectOptions::new().collation("gate", move |left, right| {
        stand();
        Ord::cmp(left, right)
    });
    (options, gate)
}

async fn words(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    connection.execute("CREATE TABLE words (value TEXT)").await?;
    connection.execute("INSERT INTO words VALUES ('a'), ('b'), ('c')").await.map(drop)
}

/// A connection of no pool, since pools have timers, which a clock that stands still sets off.
async fn connect() -> (Connection<Sqlite>, Gate) {
    let (options, gate) = gated();
    let mut connection = options.connect().await.unwrap();
    words(&mut connection).await.unwrap();
    (Connection::<Sqlite>::new(connection), gate)
}

/// Keeps the clock from going on by itself when all tasks wait, as for the thread of a connection.
struct ClockHeld {
    _release: Sender<()>,
    _task: JoinHandle<()>,
}

impl ClockHeld {
    fn new() -> Self {
        let (release, held) = channel();
        let task = tokio::task::spawn_blocking(move || {
            let _released: Result<(), _> = held.recv();
        });
        Self { _release: release, _task: task }
    }
}

/// Polls it once; it has to wait.
macro_rules! assert_waits {
    ($future:expr) => {
        assert!((&mut $future).now_or_never().is_none(), "it does not wait");
    };
}

#[tokio::test(start_paused = true)]
async fn a_stream_takes_the_time_that_is_waited_for_its_rows() {
    let (mut connection, gate) = connect().await;
    let work = async {
        let mut rows = connection.fetch(GATED);
        for _ in 0..3 {
            let mut row = pin!(rows.next());
            assert_waits!(row);
            gate.arrived();
            advance(ms(10)).await;
            gate.pass();
            row.await.unwrap().unwrap();
            // What the consumer does meanwhile is none of the statement's time.
            advance(ms(1_000)).await;
        }
        assert!(rows.next().await.is_none());
        advance(ms(1_000)).await;
        drop(rows);
        assert_eq!(Usage::current().unwrap().query_time, ms(30));
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.query_time, usage.slow_query), (ms(30), ms(30)));
    assert_eq!((usage.total_time, usage.rows), (ms(4_030), 3));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_the_pool_takes_the_same_time() {
    let _held = ClockHeld::new();
    let (options, gate) = gated();
    // An idle connection is there at once, if it is not asked first whether it lives.
    let pool = SqlitePoolOptions::new()
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(words(connection)));
    let pool = Pool::from(pool.connect_with(options).await.unwrap());
    let work = async {
        let mut rows = pool.fetch(GATED);
        for _ in 0..2 {
            let mut row = pin!(rows.next());
            assert_waits!(row);
            gate.arrived();
            advance(ms(10)).await;
            gate.pass();
            row.await.unwrap().unwrap();
            advance(ms(1_000)).await;
        }
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.query_time, usage.slow_query), (ms(20), ms(20)));
    assert_eq!((usage.rows, usage.connection_wait), (2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn each_way_to_execute_takes_the_time_until_its_result() {
    let (mut connection, gate) = connect().await;
    /// Holds it at the gate for so long before each of so many rows.
    macro_rules! held {
        ($future:expr, $rows:expr, $held:expr) => {{
            let mut future = pin!($future);
            assert_waits!(future);
            for _ in 0..$rows {
                gate.arrived();
                advance($held).await;
                gate.pass();
            }
            future.await.unwrap()
        }};
    }
    let work = async {
        held!(connection.execute(sqlx::query(GATED)), 3, ms(1));
        held!(connection.execute(GATED), 3, ms(10));
        assert_eq!(held!(connection.fetch_all(GATED), 3, ms(100)).len(), 3);
        // It asks for one row, and SQLite looks for no more.
        assert!(held!(connection.fetch_optional(GATED), 1, ms(1_000)).is_some());
        held!(connection.fetch_one(GATED), 1, ms(10_000));
    };
    let usage = usage_of(work).await;
    assert_eq!(usage.query_time, ms(11_333));
    assert_eq!(usage.slow_query, ms(10_000));
    assert_eq!((usage.queries, usage.rows), (5, 3 + 1 + 1));
}

#[tokio::test(start_paused = true)]
async fn concurrent_statements_add_up() {
    let ((mut left, left_gate), (mut right, right_gate)) = (connect().await, connect().await);
    let work = async {
        let mut both = pin!(join(left.fetch_optional(GATED), right.fetch_optional(GATED)));
        assert_waits!(both);
        left_gate.arrived();
        right_gate.arrived();
        advance(ms(10)).await;
        left_gate.pass();
        right_gate.pass();
        both.await.0.unwrap();
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.query_time, usage.slow_query), (ms(20), ms(10)));
    assert_eq!(usage.total_time, ms(10));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_statement_counts_once_with_the_time_until_then() {
    let (mut connection, gate) = connect().await;
    let witness = Witness::new();
    let work = async {
        let mut rows = connection.fetch_all(GATED);
        assert_waits!(rows);
        gate.arrived();
        advance(ms(70)).await;
        drop(rows);
        advance(ms(1_000)).await;
    };
    let usage = usage_of(work).instrument(witness.span()).await;
    assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (1, 1, 0));
    assert_eq!((usage.query_time, usage.slow_query), (ms(70), ms(70)));
    assert_eq!(witness.count(), 0, "SQLite is at it still");
    drop(gate);
    connection.ping().await.unwrap();
    assert_eq!(witness.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn work_dropped_in_a_statement_is_reported_once_with_it() {
    let (mut connection, gate) = connect().await;
    let ledger = Ledger::default();
    let work = async { drop(connection.fetch_all(GATED).await) };
    let mut work = Box::pin(work.budgeted("test", Budget::new()).with_reporter(ledger.clone()));
    assert_waits!(work);
    gate.arrived();
    advance(ms(70)).await;
    assert_eq!(ledger.records().len(), 0);
    drop(work);
    let [record] = &ledger.records()[..] else { panic!("one report") };
    assert_eq!(record.outcome, Outcome::Cancelled);
    assert_eq!((record.usage.queries, record.usage.query_time), (1, ms(70)));
    drop(gate);
    connection.ping().await.unwrap();
    assert_eq!(ledger.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn work_past_a_hard_limit_on_rows_is_cut_where_it_waits_for_the_next() {
    let (mut connection, gate) = connect().await;
    let work = async { drop(connection.fetch_all(GATED).await) };
    let budget = Budget::new().rows(Limit::hard(1));
    let mut work = pin!(work.budgeted("test", budget));
    for _ in 0..2 {
        assert_waits!(work);
        gate.arrived();
        gate.pass();
    }
    let cut = work.await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::Rows);
    assert_eq!(cut.violation().observed, Amount::Count(2));
    // The third row has not come: SQLite is kept from it until now.
    gate.arrived();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_transaction_is_query_time_and_no_query() {
    let (mut connection, _) = connect().await;
    let (gate, stand) = Gate::new();
    let mut handle = connection.unmetered().lock_handle().await.unwrap();
    handle.set_commit_hook(move || {
        stand();
        true
    });
    drop(handle);
    let work = async {
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute("INSERT INTO words VALUES ('d')").await.unwrap();
        let mut commit = pin!(transaction.commit());
        assert_waits!(commit);
        gate.arrived();
        advance(ms(40)).await;
        gate.pass();
        commit.await.unwrap();
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.query_time, usage.slow_query), (ms(40), Duration::ZERO));
    assert_eq!((usage.queries, usage.transactions), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_is_no_query_time() {
    let _held = ClockHeld::new();
    let options = SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect_with(SqliteConnectOptions::new()).await.unwrap();
    let pool = Pool::from(pool);
    let held = pool.acquire().await.unwrap();
    let work = async {
        let mut query = pin!(sqlx::query("SELECT 1").execute(&pool));
        assert_waits!(query);
        let meanwhile = Usage::current().unwrap();
        assert_eq!((meanwhile.queries, meanwhile.connection_wait), (0, Duration::ZERO));
        advance(ms(250)).await;
        drop(held);
        query.await.unwrap();

        let held = pool.acquire().await.unwrap();
        let mut begin = pin!(pool.begin());
        assert_waits!(begin);
        advance(ms(30)).await;
        drop(held);
        begin.await.unwrap().rollback().await.unwrap();
    };
    let usage = usage_of(work).await;
    assert_eq!(usage.connection_wait, ms(280));
    assert_eq!((usage.query_time, usage.queries, usage.transactions), (Duration::ZERO, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_connection_that_is_given_up_counts() {
    let _held = ClockHeld::new();
    let options = SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect_with(SqliteConnectOptions::new()).await.unwrap();
    let pool = Pool::from(pool);
    let _taken = pool.acquire().await.unwrap();
    let work = async {
        let mut query = pin!(sqlx::query("SELECT 1").execute(&pool));
        assert_waits!(query);
        advance(ms(250)).await;
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.queries, usage.connection_wait), (0, ms(250)));
}

#[tokio::test(start_paused = true)]
async fn a_guard_by_hand_takes_the_time_that_it_is_not_paused() {
    let work = async {
        let mut query = Query::start("GET user:*").unwrap();
        advance(ms(1)).await;
        query.pause();
        advance(ms(1_000)).await;
        query.pause();
        query.resume();
        advance(ms(10)).await;
        query.resume();
        advance(ms(100)).await;
        query.add_rows(2);
        drop(query);
        let mut paused_at_its_end = Query::start("GET user:*").unwrap();
        advance(ms(5)).await;
        paused_at_its_end.pause();
        advance(ms(1_000)).await;
    };
    let usage = usage_of(work).await;
    assert_eq!((usage.query_time, usage.slow_query), (ms(116), ms(111)));
    assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (2, 2, 2));
}

#[tokio::test]
async fn a_wait_for_a_connection_names_the_pool() {
    let pool = |file: &str| {
        let options = SqliteConnectOptions::new().filename(file);
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(ms(600_000));
        Pool::from(pool.connect_lazy_with(options.create_if_missing(true)))
    };
    let folder = std::env::temp_dir().join(format!("request-budget-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (orders, prices) = (pool(&file("orders.db")), pool(&file("prices.db")));
    let held = (orders.acquire().await.unwrap(), prices.acquire().await.unwrap());
    tokio::time::pause();
    let work = async {
        // A wait that is over, and short.
        drop(tokio::time::timeout(ms(100), prices.acquire()).await);
        drop(orders.acquire().await);
    };
    let cut = work.budgeted("job", Budget::new().total_time(ms(30_000))).await.unwrap_err();
    let message = "job: 30s in total, limit 30s: waiting for a connection of sqlite:orders.db for \
                   29.9s, 30s in all";
    assert_eq!(cut.violation().to_string(), message);

    let messages = Arc::new(Mutex::new(Vec::new()));
    let reporter = {
        let messages = Arc::clone(&messages);
        move |violation: &Violation| messages.lock().unwrap().push(violation.to_string())
    };
    let (orders, prices) = (orders.with_name("or\nders"), prices.with_name("prices"));
    let work = async {
        drop(tokio::time::timeout(ms(300), orders.acquire()).await);
        drop(tokio::time::timeout(ms(200), prices.acquire()).await);
    };
    let budget = Budget::new().connection_wait(ms(400));
    work.budgeted("job", budget).with_reporter(reporter).await.unwrap();
    let [message] = <[String; 1]>::try_from(messages.lock().unwrap().clone()).unwrap();
    assert!(message.ends_with(r"waiting for connections, limit 400ms: pool or\nders"), "{message}");
    drop(held);
    std::fs::remove_dir_all(folder).unwrap();
}
