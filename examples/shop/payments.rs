//! An external system, and the endpoint that calls it.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::routing::get;
use request_budget::ExternalExt;
use tokio::net::TcpListener;

use crate::Failure;
use crate::app::{Problem, Shop};

/// Starts the external system; returns its address.
pub(crate) fn start(listener: TcpListener) -> Result<String, Failure> {
    let address = format!("http://{}", listener.local_addr()?);
    let app = Router::new().route("/price/{id}", get(price));
    // Ends with the program.
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    Ok(address)
}

async fn price(Path(id): Path<u32>, RawQuery(query): RawQuery) -> String {
    let is_slow = query.is_some_and(|query| query.contains("slow"));
    tokio::time::sleep(Duration::from_millis(if is_slow { 5_000 } else { 5 })).await;
    format!("{}", id.wrapping_mul(3))
}

/// Asks for the price of a post; `?slow=1` is handed on and makes the other side slow.
pub(crate) async fn quote(
    State(shop): State<Shop>,
    Path(id): Path<u32>,
    RawQuery(query): RawQuery,
) -> Result<String, Problem> {
    let title: Option<String> = sqlx::query_scalar("SELECT title FROM posts WHERE id = ?")
        .bind(id)
        .fetch_optional(&shop.pool)
        .await?;
    let title = title.ok_or(Problem::not_found("post"))?;
    let url = format!("{}/price/{id}?{}", shop.payments, query.unwrap_or_default());
    let price = ask(&shop, &url).external("payments").await??;
    Ok(format!("{title} costs {price}\n"))
}

/// The call with its body: on `send()` alone a limit would end with the headers.
pub(crate) async fn ask(shop: &Shop, url: &str) -> reqwest::Result<String> {
    shop.http.get(url).send().await?.error_for_status()?.text().await
}
