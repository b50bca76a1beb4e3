//! The background worker: each job is a unit of work, under the same rules as a request.

use std::time::Duration;

use request_budget::{Budget, BudgetExt, ExternalExt};

use crate::app::{Problem, Shop};
use crate::ledger::Ledger;
use crate::payments;

/// How many jobs there are in a round.
pub(crate) const JOBS: usize = 3;

fn nightly() -> Budget {
    Budget::new()
        .queries(100)
        .external_calls(5)
        .external_timeout(Duration::from_millis(300))
        .total_time(Duration::from_millis(500))
}

/// Runs every job so many times, with a pause after each round.
pub(crate) async fn run(shop: Shop, ledger: Ledger, rounds: u32, pause: Duration) {
    for _ in 0..rounds {
        let invoices = send_invoices(shop.clone()).budgeted("send_invoices", nightly());
        note(invoices.with_reporter(ledger.clone()).await);
        let prices = sync_prices(shop.clone()).budgeted("sync_prices", nightly());
        note(prices.with_reporter(ledger.clone()).await);
        let words = count_words(shop.clone()).budgeted("count_words", nightly());
        note(words.with_reporter(ledger.clone()).await);
        tokio::time::sleep(pause).await;
    }
}

/// A cut is in the ledger already; an error of the job itself is nowhere else.
fn note<E>(done: Result<Result<(), Problem>, E>) {
    if let Ok(Err(problem)) = done {
        tracing::error!(?problem, "a job failed");
    }
}

/// Behaves: one statement to read, one to write, in a transaction.
async fn send_invoices(shop: Shop) -> Result<(), Problem> {
    let mut tx = shop.pool.begin().await?;
    let open: Vec<(i64, String)> =
        sqlx::query_as("SELECT id, customer FROM orders WHERE invoiced = 0 LIMIT 100")
            .fetch_all(&mut *tx)
            .await?;
    tracing::debug!(?open, "sending invoices");
    sqlx::query("UPDATE orders SET invoiced = 1 WHERE invoiced = 0").execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

/// Calls the external system once for each post, where it should ask for all prices at once.
async fn sync_prices(shop: Shop) -> Result<(), Problem> {
    for post in 1..=20 {
        let url = format!("{}/price/{post}", shop.payments);
        payments::ask(&shop, &url).external("payments").await??;
    }
    Ok(())
}

/// Would take half a minute: it writes each comment by itself, and is polite in between.
async fn count_words(shop: Shop) -> Result<(), Problem> {
    for comment in 1..=20_000 {
        sqlx::query("UPDATE comments SET words = length(body) WHERE id = ?")
            .bind(comment)
            .execute(&shop.pool)
            .await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
