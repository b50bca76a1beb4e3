//! What the layer, the allocator and the metered pool cost, each beside going without.
//!
//! Quick, and one thing after the other. What is measured side by side, next to other crates, is in
//! `benches/peers`.

mod shared;

use std::convert::Infallible;
use std::env;
use std::hint::black_box;
use std::time::Duration;

use axum::body::Body;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::BodyExt;
use request_budget::alloc::CountingAllocator;
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, BudgetLayer};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Database, Executor, IntoArguments, Postgres, Sqlite};
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("builds")
}

fn every_limit() -> Budget {
    let (many, long) = (u64::MAX / 2, Duration::from_secs(30));
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
        .body_idle(long)
}

async fn answer(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::from("hello")))
}

fn layer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer");
    let mut serve = |name: &str, budget: Option<Budget>| {
        group.bench_function(name, |bencher| match &budget {
            None => bencher.to_async(runtime()).iter(|| request(service_fn(answer))),
            Some(budget) => {
                let layer = BudgetLayer::new(budget.clone());
                let service = ServiceBuilder::new().layer(layer).service_fn(answer);
                bencher.to_async(runtime()).iter(|| request(service.clone()));
            }
        });
    };
    serve("absent", None);
    serve("no limit", Some(Budget::new()));
    serve("every limit", Some(every_limit()));
    serve("every limit, and polls timed", Some(every_limit().poll_time(Duration::from_secs(30))));
}

async fn request<S, B>(service: S)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let request = Request::get("/posts").body(Body::empty()).expect("is valid");
    let response = service.oneshot(request).await.expect("cannot fail");
    black_box(response.into_body().collect().await.expect("is whole").to_bytes());
}

fn allocator(criterion: &mut Criterion) {
    shared::allocate(criterion, "idle");
    let counting = async { shared::allocate(criterion, "counting") };
    let counting = counting.budgeted("bench", Budget::new().memory(u64::MAX / 2));
    runtime().block_on(counting).expect("is not cut");
}

fn pool(criterion: &mut Criterion) {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:");
    let runtime = runtime();
    let pool = runtime.block_on(pool).expect("opens");
    select::<Sqlite>(criterion, &runtime, "SQLite", &pool.into());

    let Ok(url) = env::var("REQUEST_BUDGET_POSTGRES_URL") else {
        println!("PostgreSQL: skipped, REQUEST_BUDGET_POSTGRES_URL is not set");
        return;
    };
    let pool = runtime.block_on(PgPoolOptions::new().max_connections(1).connect(&url));
    select::<Postgres>(criterion, &runtime, "PostgreSQL", &pool.expect("connects").into());
}

fn select<DB>(criterion: &mut Criterion, runtime: &Runtime, name: &str, pool: &Pool<DB>)
where
    DB: Database,
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    let mut group = criterion.benchmark_group(format!("pool of {name}"));
    let plain = async || {
        sqlx::query("SELECT 1").fetch_one(pool.unmetered()).await.expect("is there");
    };
    let metered = async || {
        sqlx::query("SELECT 1").fetch_one(pool).await.expect("is there");
    };
    group.bench_function("plain", |bencher| bencher.to_async(runtime).iter(plain));
    group.bench_function("metered", |bencher| {
        bencher.to_async(runtime).iter_custom(async |turns| {
            let since = tokio::time::Instant::now();
            let all = async {
                for _ in 0..turns {
                    metered().await;
                }
            };
            all.budgeted("bench", every_limit()).await.expect("is not cut");
            since.elapsed()
        });
    });
}

criterion_group!(benches, layer, allocator, pool);
criterion_main!(benches);
