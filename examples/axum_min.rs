//! A service under a budget, to be copied. `cargo run --example axum_min`, then `curl
//! localhost:3000/posts`.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use request_budget::{Budget, BudgetLayer, alloc::CountingAllocator, sqlx::SqlitePool};
use std::{error::Error, time::Duration};

#[global_allocator] // without it memory is not measured
static ALLOC: CountingAllocator = CountingAllocator::system();

async fn posts(State(pool): State<SqlitePool>) -> Result<Json<Vec<String>>, StatusCode> {
    let titles = sqlx::query_scalar("SELECT title FROM posts LIMIT 100").fetch_all(&pool).await;
    titles.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

pub(crate) async fn app() -> Result<Router, sqlx::Error> {
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = SqlitePool::from(options.connect("sqlite::memory:").await?); // the pool, wrapped
    let data = "CREATE TABLE posts (title TEXT); INSERT INTO posts VALUES ('hello')";
    sqlx::raw_sql(data).execute(&pool).await?;
    let budget = Budget::new()
        .queries(20) // soft: reports
        .memory(8 << 20) // soft: bytes at peak
        .total_time(Duration::from_secs(1)); // hard: answers 503
    Ok(Router::new().route("/posts", get(posts)).with_state(pool).layer(BudgetLayer::new(budget)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // At this level each request's usage is logged.
    tracing_subscriber::fmt().with_env_filter("info,request_budget=debug").init();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app().await?).await?)
}
