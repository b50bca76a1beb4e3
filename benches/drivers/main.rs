//! What metering costs: statements of sqlx and MongoDB with it and without, side by side in one
//! run; and what it costs to observe the statements of a plain pool, beside the event that sqlx
//! makes of each.
//!
//! `cargo bench --bench drivers [-- NAME]` takes less than a minute; with `-- --test`, as in `cargo
//! test --benches`, it only makes sure that all of it works. The servers are named by variables,
//! which `tests/run --serve` prints; a case without its server is shown as skipped.
//!
//! In each round every side runs the same statements, in another order each time, so that what
//! slows the machine down meanwhile slows down all of them. "Plain again" is not metered: what it
//! shows is the error of the measurement.

#![expect(clippy::arithmetic_side_effects, reason = "in a benchmark an overflow may panic")]

mod observed;

use std::env;
use std::hint::black_box;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use request_budget::alloc::CountingAllocator;
use request_budget::sqlx::{Pool, PoolConnection};
use request_budget::{Budget, BudgetExt, Usage};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{AssertSqlSafe, Database, Executor, IntoArguments, Postgres, Sqlite};
use tokio::time::Instant;

// For both sides, so that it is not what differs: the scope reads its counters on each poll.
#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

const POSTGRES: &str = "REQUEST_BUDGET_POSTGRES_URL";
const MONGODB: &str = "REQUEST_BUDGET_MONGODB_URL";

/// One thread, so that what metering takes of it is waited for by the statements.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let bench = Bench::from_args();
    println!(
        "{:<29}{:<13}{:>10}{:>11}{:>8}   half of the rounds within",
        "case", "side", "plain", "this", "ratio"
    );
    postgres(&bench).await;
    sqlite(&bench).await;
    mongo(&bench).await;
    // Last: from here on the process has a layer that counts.
    observed::measure(&bench).await;
}

/// How the statements of a round are run.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Plain,
    InScope,
    OutOfScope,
    PlainAgain,
}

impl Side {
    const ALL: [Self; 4] = [Self::Plain, Self::InScope, Self::OutOfScope, Self::PlainAgain];
}

trait Case {
    /// What the sides are besides the first, with which they are compared.
    const NAMES: [&'static str; 3] = ["in a scope", "in no scope", "plain again"];

    /// Runs so many statements, all of them in one unit of work where there is one.
    async fn run(&mut self, side: Side);

    fn statements(&self) -> u64;
}

/// Runs statements as a unit of work with every limit set and none of them crossed.
async fn in_scope(statements: u64, work: impl Future<Output = ()>) {
    let work = async {
        work.await;
        let counted = Usage::current().expect("inside").queries;
        assert!(counted >= statements, "{counted} of {statements} statements were counted");
    };
    work.budgeted("bench", every_limit()).await.expect("nothing is cut");
}

/// Not `poll_time`: its two readings of the clock a poll are what a user asks for with it, and
/// would be measured here with each statement.
fn every_limit() -> Budget {
    let (many, long) = (u64::MAX / 2, Duration::from_secs(3_600));
    Budget::new()
        .queries(many)
        .repeated_queries(many)
        .rows(many)
        .transactions(many)
        .query_time(long)
        .slow_query(long)
        .connection_wait(long)
        .memory(many)
        .allocated(many)
        .retained(many)
        .external_calls(many)
        .external_time(long)
        .external_timeout(long)
        .total_time(long)
        .slow_request(long)
        .response_bytes(many)
}

struct Bench {
    only: Option<String>,
    /// How long a case is measured; `None` for a trial.
    time: Option<Duration>,
}

impl Bench {
    fn from_args() -> Self {
        let args: Vec<_> = env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        // Cargo says so where it is to be measured: `cargo test --benches` does not.
        let is_measured = has("--bench") && !has("--test");
        Self {
            only: args.iter().find(|arg| !arg.starts_with('-')).cloned(),
            time: is_measured.then_some(Duration::from_secs(7)),
        }
    }

    fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| case.to_lowercase().contains(&only.to_lowercase()))
    }

    /// Runs one share of the rounds of a case.
    async fn rounds(&self, case: &mut impl Case, share: u32, rounds: &mut Vec<[f64; 4]>) {
        const TRIALS: usize = 8;
        let until = self.time.map(|time| Instant::now() + time / share);
        for round in 0.. {
            if until.map_or(round == TRIALS, |until| Instant::now() > until) {
                break;
            }
            let mut sides = Side::ALL;
            sides.rotate_left(round % 4);
            if round / 4 % 2 == 1 {
                sides.reverse();
            }
            let mut times = [0.0; 4];
            for side in sides {
                let since = Instant::now();
                case.run(side).await;
                times[side as usize] = since.elapsed().as_secs_f64() / case.statements() as f64;
            }
            // The first ones prepare statements and fill caches.
            if round >= TRIALS || until.is_none() {
                rounds.push(times);
            }
        }
    }

    fn print<C: Case>(&self, name: &str, rounds: &[[f64; 4]]) {
        let plain = quartiles(rounds.iter().map(|times| times[0]))[1];
        for (side, what) in (1..).zip(C::NAMES) {
            let this = quartiles(rounds.iter().map(|times| times[side]))[1];
            let [low, ratio, high] = quartiles(rounds.iter().map(|times| times[side] / times[0]));
            let (first, plain, this) = (if side == 1 { name } else { "" }, plain * 1e6, this * 1e6);
            println!(
                "{first:<29}{what:<13}{plain:>8.1}µs{this:>9.1}µs{ratio:>8.3}   {low:.3} to {high:.3}"
            );
        }
    }
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

async fn postgres(bench: &Bench) {
    let name = "PostgreSQL";
    match env::var(POSTGRES) {
        Err(_) if bench.wants(name) => println!("{name:<29}skipped: {POSTGRES} is not set"),
        Ok(url) if bench.wants(name) => {
            let pool = PgPoolOptions::new().max_connections(1).connect(&url).await;
            sql::<Postgres>(bench, name, Pool::from(pool.expect("connects"))).await;
        }
        _ => {}
    }
}

async fn sqlite(bench: &Bench) {
    if bench.wants("SQLite") {
        let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await;
        sql::<Sqlite>(bench, "SQLite", Pool::from(pool.expect("opens"))).await;
    }
}

async fn sql<DB>(bench: &Bench, name: &str, pool: Pool<DB>)
where
    DB: Database,
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    const ROWS: usize = 100;
    let mut connection = pool.acquire().await.expect("is there");
    let create = "CREATE TEMP TABLE posts (id BIGINT PRIMARY KEY, title TEXT)";
    sqlx::query(create).execute(&mut *connection).await.expect("creates");
    for id in 1..=ROWS {
        let insert = format!("INSERT INTO posts VALUES ({id}, 'the title of post {id}')");
        sqlx::query(AssertSqlSafe(insert)).execute(&mut *connection).await.expect("inserts");
    }
    for (statement, rows, statements) in [
        ("SELECT id, title FROM posts WHERE id = 7", 1, 20),
        ("SELECT id, title FROM posts ORDER BY id", ROWS, 10),
    ] {
        let mut case = Sql { connection, statement, rows, statements };
        let mut rounds = Vec::new();
        bench.rounds(&mut case, 1, &mut rounds).await;
        bench.print::<Sql<DB>>(&format!("{name}, {}", counted(rows, "row")), &rounds);
        connection = case.connection;
    }
}

/// The same connection for all sides: two of them are never served equally fast.
struct Sql<DB: Database> {
    connection: PoolConnection<DB>,
    statement: &'static str,
    rows: usize,
    statements: u64,
}

impl<DB> Case for Sql<DB>
where
    DB: Database,
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    async fn run(&mut self, side: Side) {
        let Self { connection, statement, rows, statements } = self;
        let (statement, rows, statements) = (*statement, *rows, *statements);
        match side {
            Side::Plain | Side::PlainAgain => {
                for _ in 0..statements {
                    fetch(connection.unmetered(), statement, rows).await;
                }
            }
            Side::InScope => {
                let work = async {
                    for _ in 0..statements {
                        fetch(&mut **connection, statement, rows).await;
                    }
                };
                in_scope(statements, work).await;
            }
            Side::OutOfScope => {
                for _ in 0..statements {
                    fetch(&mut **connection, statement, rows).await;
                }
            }
        }
    }

    fn statements(&self) -> u64 {
        self.statements
    }
}

async fn fetch<'c, E>(executor: E, statement: &'static str, rows: usize)
where
    E: Executor<'c>,
    <E::Database as Database>::Arguments: IntoArguments<E::Database>,
{
    let query = sqlx::query(statement);
    if rows == 1 {
        black_box(query.fetch_one(executor).await.expect("is there"));
    } else {
        assert_eq!(black_box(query.fetch_all(executor).await.expect("fetches")).len(), rows);
    }
}

async fn mongo(bench: &Bench) {
    const DATABASE: &str = "request_budget_bench";
    // Clients have connections of their own, which are never served equally fast: each pair makes
    // up for another.
    const CLIENTS: u32 = 4;
    let name = "MongoDB";
    if !bench.wants(name) {
        return;
    }
    let Ok(url) = env::var(MONGODB) else {
        println!("{name:<29}skipped: {MONGODB} is not set");
        return;
    };
    let owner = mongodb::Client::with_uri_str(&url).await.expect("connects");
    let database = owner.database(DATABASE);
    database.drop().await.expect("drops");
    let post = |id: i32| doc! { "_id": id, "title": format!("the title of post {id}"), "author": id % 7, "score": 0.5 };
    let posts = database.collection("posts");
    posts.insert_many((1..=1_000).map(post)).await.expect("inserts");

    for (documents, statements) in [(1, 10), (100, 5), (1_000, 2)] {
        let mut rounds = Vec::new();
        for _ in 0..CLIENTS {
            let plain = mongodb::Client::with_uri_str(&url).await.expect("connects");
            let again = mongodb::Client::with_uri_str(&url).await.expect("connects");
            let metered = request_budget::mongodb::Client::with_uri_str(&url).await;
            let metered = metered.expect("connects");
            let posts = [&plain, &*metered, &again]
                .map(|client| client.database(DATABASE).collection("posts"));
            let mut case = Find { posts, documents, statements };
            bench.rounds(&mut case, CLIENTS, &mut rounds).await;
        }
        let documents = counted(usize::from(documents), "document");
        bench.print::<Find>(&format!("{name}, {documents}"), &rounds);
    }
    database.drop().await.expect("drops");
}

/// Finds so many documents, as the plain client, the metered one and another plain one.
struct Find {
    posts: [Collection<Document>; 3],
    documents: u16,
    statements: u64,
}

impl Case for Find {
    async fn run(&mut self, side: Side) {
        let [plain, metered, again] = &self.posts;
        match side {
            Side::Plain => self.find(plain).await,
            Side::InScope => in_scope(self.statements, self.find(metered)).await,
            Side::OutOfScope => self.find(metered).await,
            Side::PlainAgain => self.find(again).await,
        }
    }

    fn statements(&self) -> u64 {
        self.statements
    }
}

impl Find {
    async fn find(&self, posts: &Collection<Document>) {
        for _ in 0..self.statements {
            let found = posts.find(doc! {}).limit(self.documents.into()).await.expect("finds");
            let found: Vec<_> = found.try_collect().await.expect("reads");
            assert_eq!(black_box(found).len(), usize::from(self.documents));
        }
    }
}

/// "1 row", "100 rows".
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
