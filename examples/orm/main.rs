//! An N+1 of SeaORM, found without a change to its code, and mended.
//!
//! `cargo run --example orm` needs no server.

mod blog;

use request_budget::db::SqlxEvents;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), sea_orm::DbErr> {
    // This line is all that a service on SeaORM, or on plain sqlx, needs.
    tracing_subscriber::registry().with(SqlxEvents::new()).init();
    let blog = blog::open().await?;
    print!("{}", blog::compare(&blog).await?);
    Ok(())
}
