//! How often a request and a statement allocate, with ours and without.

use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use http::{Request, Response};
use peers::layers::every_limit;
use request_budget::{BudgetExt, BudgetLayer, sqlx::Pool};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Executor, Sqlite, SqlitePool};
use tokio::runtime::Runtime;
use tower::{Layer, Service};

const TURNS: u32 = 1_000;

fn main() {
    println!("\nAllocations\n\n| | without | ours, every limit |\n|---|---:|---:|");
    let handler = || {
        tower::service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        })
    };
    row(
        "a request",
        requests(handler()),
        requests(BudgetLayer::new(every_limit()).layer(handler())),
    );

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let pool: SqlitePool = runtime
        .block_on(SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:"))
        .expect("opens");
    let ours = Pool::from(pool.clone());
    // Prepared once; what is allocated on the thread of the driver is not seen.
    statements(&runtime, &pool);
    row("a statement of SQLite", statements(&runtime, &pool), scoped_statements(&runtime, &ours));
}

fn row(what: &str, without: f64, ours: f64) {
    println!("| {what} | {without:.2} | {ours:.2} |");
}

fn requests<S, B>(mut service: S) -> f64
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
{
    counted(|| {
        for _ in 0..TURNS {
            let mut future = pin!(service.call(Request::new(Body::empty())));
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Ready(Ok(_))), "it answers at once");
        }
    })
}

async fn select<'c>(executor: impl Executor<'c, Database = Sqlite>) {
    sqlx::query("SELECT 1").fetch_one(executor).await.expect("is there");
}

fn statements(runtime: &Runtime, pool: &SqlitePool) -> f64 {
    counted(|| {
        runtime.block_on(async {
            for _ in 0..TURNS {
                select(pool).await;
            }
        });
    })
}

fn scoped_statements(runtime: &Runtime, pool: &Pool<Sqlite>) -> f64 {
    let all = || async {
        for _ in 0..TURNS {
            select(pool).await;
        }
    };
    counted(|| runtime.block_on(all().budgeted("bench", every_limit())).expect("is not cut"))
}

/// How often one turn allocates.
fn counted(turns: impl FnOnce()) -> f64 {
    let mut turns = Some(turns);
    let info = allocation_counter::measure(|| (turns.take().expect("once"))());
    info.count_total as f64 / f64::from(TURNS)
}
