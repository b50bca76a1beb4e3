//! The jobs: one that behaves, and one for each way not to.

use std::sync::Mutex;
use std::time::Duration;

use apalis::prelude::{Attempt, BoxDynError, Data};
use request_budget::sqlx::Pool;
use serde::{Deserialize, Serialize};
use sqlx::Sqlite;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Job {
    SendInvoice { order: i64 },
    RemindCustomers,
    RebuildReport,
    ExportOrders,
    SyncStock,
    ImportPrices,
    ParseUpload,
}

impl Job {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::SendInvoice { .. } => "send_invoice",
            Self::RemindCustomers => "remind_customers",
            Self::RebuildReport => "rebuild_report",
            Self::ExportOrders => "export_orders",
            Self::SyncStock => "sync_stock",
            Self::ImportPrices => "import_prices",
            Self::ParseUpload => "parse_upload",
        }
    }
}

/// How often the leaky job is run.
pub(crate) const IMPORTS: usize = 40;

/// What is put into the queue, and how often each is tried.
pub(crate) fn all() -> impl Iterator<Item = (Job, usize)> {
    let once = [Job::RemindCustomers, Job::RebuildReport, Job::ExportOrders, Job::ParseUpload];
    let invoices = (1..=3).map(|order| (Job::SendInvoice { order }, 1));
    let imports = std::iter::repeat_n((Job::ImportPrices, 1), IMPORTS);
    invoices.chain(once.map(|job| (job, 1))).chain([(Job::SyncStock, 3)]).chain(imports)
}

pub(crate) async fn handle(
    job: Job,
    attempt: Attempt,
    pool: Data<Pool<Sqlite>>,
) -> Result<(), BoxDynError> {
    match job {
        Job::SendInvoice { order } => send_invoice(&pool, order).await?,
        Job::RemindCustomers => remind_customers(&pool).await?,
        Job::RebuildReport => rebuild_report(&pool).await?,
        Job::ExportOrders => export_orders(&pool).await?,
        Job::SyncStock => sync_stock(attempt.current()).await,
        Job::ImportPrices => import_prices(&pool).await?,
        Job::ParseUpload => panic!("a bug in parse_upload, on purpose"),
    }
    Ok(())
}

/// Behaves: one statement to write, which also locks, one to read, in a transaction.
async fn send_invoice(pool: &Pool<Sqlite>, order: i64) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("UPDATE orders SET invoiced = 1 WHERE id = ?")
        .bind(order)
        .execute(&mut *tx)
        .await?;
    let _customer: String = sqlx::query_scalar("SELECT customer FROM orders WHERE id = ?")
        .bind(order)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await
}

/// Asks for each customer by itself.
async fn remind_customers(pool: &Pool<Sqlite>) -> sqlx::Result<()> {
    let open: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM orders ORDER BY id LIMIT 40").fetch_all(pool).await?;
    for order in open {
        let _customer: String = sqlx::query_scalar("SELECT customer FROM orders WHERE id = ?")
            .bind(order)
            .fetch_one(pool)
            .await?;
    }
    Ok(())
}

/// Makes the database count for long.
async fn rebuild_report(pool: &Pool<Sqlite>) -> sqlx::Result<()> {
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000)
        SELECT sum(i) FROM n";
    sqlx::query(slow).execute(pool).await?;
    Ok(())
}

/// Collects all pages before it writes any.
async fn export_orders(pool: &Pool<Sqlite>) -> sqlx::Result<()> {
    let mut pages = Vec::new();
    for page in 0..4_u8 {
        sqlx::query("SELECT id FROM orders LIMIT 10").fetch_all(pool).await?;
        pages.push(vec![page; 1 << 20]);
    }
    Ok(())
}

/// Waits for an answer that never comes, the first time.
async fn sync_stock(attempt: usize) {
    let patience = if attempt == 1 { Duration::MAX } else { Duration::from_millis(5) };
    tokio::time::sleep(patience).await;
}

/// Keeps everything it has ever imported.
async fn import_prices(pool: &Pool<Sqlite>) -> sqlx::Result<()> {
    static IMPORTED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

    sqlx::query("SELECT count(*) FROM orders").fetch_one(pool).await?;
    let prices = vec![0; 128 << 10];
    IMPORTED.lock().map(|mut imported| imported.push(prices)).unwrap_or_default();
    Ok(())
}
