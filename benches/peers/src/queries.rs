//! Statements of sqlx, plain and metered.

use std::hint::black_box;
use std::time::{Duration, Instant};

use request_budget::{Budget, BudgetExt, sqlx::Pool};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{AssertSqlSafe, Database, Executor, IntoArguments, PgPool, SqlitePool};
use tokio::runtime::Runtime;

use crate::layers::every_limit;
use crate::measure::{Side, interleave, print_ratios};

const STATEMENT: &str = "SELECT id, title FROM posts WHERE id = 7";
const POSTGRES: &str = "REQUEST_BUDGET_POSTGRES_URL";

/// Measures and prints all of it.
pub fn run(time: Duration) {
    sqlite(time);
    match std::env::var(POSTGRES) {
        Ok(url) => postgres(&url, time),
        Err(_) => println!("\nPostgreSQL: skipped, {POSTGRES} is not set"),
    }
}

/// A pool of one connection each: two connections are never served equally fast, but a pool of sqlx
/// can be shared by the sides.
fn sqlite(time: Duration) {
    // The driver works on a thread of its own; wherever that runs, it should stay there.
    let pinned = core_affinity::get_core_ids().and_then(|ids| ids.last().copied());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pinned = pinned.is_some_and(core_affinity::set_for_current);
            let runtime = current_thread();
            let pool: SqlitePool = runtime
                .block_on(SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:"))
                .expect("opens");
            runtime.block_on(fill::<sqlx::Sqlite>(&pool));
            let ours = Pool::from(pool.clone());
            let otel = sqlx_otel::PoolBuilder::from(pool.clone()).build();
            let sides = vec![
                Side::new("plain sqlx", || round(&runtime, 50, async || fetch(&pool).await)),
                Side::new("ours, in a scope with every limit", || {
                    scoped_round(&runtime, 50, async || fetch(&ours).await)
                }),
                Side::new("ours, in no scope", || round(&runtime, 50, async || fetch(&ours).await)),
                Side::new("sqlx-otel, without a provider", || {
                    round(&runtime, 50, async || fetch(&otel).await)
                }),
                Side::new("plain sqlx again", || round(&runtime, 50, async || fetch(&pool).await)),
            ];
            let place = if pinned { "pinned to one core" } else { "not pinned" };
            let title = format!("Query: SQLite in memory, one row, {place}");
            print_ratios(&title, &interleave(sides, time));
        });
    });
}

fn postgres(url: &str, time: Duration) {
    let runtime = current_thread();
    let pool: PgPool =
        runtime.block_on(PgPoolOptions::new().max_connections(1).connect(url)).expect("connects");
    runtime.block_on(fill::<sqlx::Postgres>(&pool));
    let ours = Pool::from(pool.clone());
    let otel = sqlx_otel::PoolBuilder::from(pool.clone()).build();
    let sides = vec![
        Side::new("plain sqlx", || round(&runtime, 50, async || fetch(&pool).await)),
        Side::new("ours, in a scope with every limit", || {
            scoped_round(&runtime, 50, async || fetch(&ours).await)
        }),
        Side::new("ours, in no scope", || round(&runtime, 50, async || fetch(&ours).await)),
        Side::new("sqlx-otel, without a provider", || {
            round(&runtime, 50, async || fetch(&otel).await)
        }),
        Side::new("plain sqlx again", || round(&runtime, 50, async || fetch(&pool).await)),
    ];
    print_ratios("Query: PostgreSQL over loopback, one row", &interleave(sides, time));
}

/// Runs statements on one side only, for a count of instructions.
pub fn query_only(side: &str, turns: u32) {
    let url = std::env::var(POSTGRES).expect("is set");
    let runtime = current_thread();
    let pool: PgPool =
        runtime.block_on(PgPoolOptions::new().max_connections(1).connect(&url)).expect("connects");
    runtime.block_on(fill::<sqlx::Postgres>(&pool));
    let ours = Pool::from(pool.clone());
    match side {
        "plain" => round(&runtime, turns, async || fetch(&pool).await),
        "ours" => round(&runtime, turns, async || fetch(&ours).await),
        _ => scoped_round(&runtime, turns, async || fetch(&ours).await),
    };
}

fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds")
}

fn round(runtime: &Runtime, turns: u32, turn: impl AsyncFn()) -> f64 {
    runtime.block_on(async {
        let since = Instant::now();
        for _ in 0..turns {
            turn().await;
        }
        since.elapsed().as_nanos() as f64 / f64::from(turns)
    })
}

fn scoped_round(runtime: &Runtime, turns: u32, turn: impl AsyncFn()) -> f64 {
    runtime.block_on(async {
        let since = Instant::now();
        let all = async {
            for _ in 0..turns {
                turn().await;
            }
        };
        all.budgeted("bench", budget()).await.expect("is not cut");
        since.elapsed().as_nanos() as f64 / f64::from(turns)
    })
}

fn budget() -> Budget {
    every_limit()
}

async fn fill<DB>(pool: &sqlx::Pool<DB>)
where
    DB: Database,
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    let create = "CREATE TEMP TABLE posts (id BIGINT PRIMARY KEY, title TEXT)";
    sqlx::query(create).execute(pool).await.expect("creates");
    for id in 1..=100 {
        let insert = format!("INSERT INTO posts VALUES ({id}, 'the title of post {id}')");
        sqlx::query(AssertSqlSafe(insert)).execute(pool).await.expect("inserts");
    }
}

async fn fetch<'c, E>(executor: E)
where
    E: Executor<'c>,
    <E::Database as Database>::Arguments: IntoArguments<E::Database>,
{
    black_box(sqlx::query(STATEMENT).fetch_one(executor).await.expect("is there"));
}
