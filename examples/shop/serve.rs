//! Serving until interrupted, with each violation printed as it comes.

use std::time::Duration;

use tokio::net::TcpListener;

use crate::app::{self, Shop};
use crate::ledger::{Entry, Ledger};
use crate::{Failure, jobs, print};

pub(crate) async fn until_interrupted(listener: TcpListener, shop: Shop) -> Result<(), Failure> {
    let (ledger, mut entries) = Ledger::open();
    print(&format!("serving on http://{} until Ctrl-C", listener.local_addr()?))?;
    let worker = jobs::run(shop.clone(), ledger.clone(), 3, Duration::from_secs(20));
    let worker = tokio::spawn(worker);
    let printer = tokio::spawn(async move {
        while let Some(entry) = entries.recv().await {
            let printed = match entry {
                Entry::Violation(violation) => {
                    print(&format!("  {} limit: {violation}", violation.severity.name()))
                }
                Entry::Finished(done) => {
                    print(&format!("{}: {}: {}", done.work, done.outcome, done.usage))
                }
            };
            if printed.is_err() {
                break;
            }
        }
    });
    axum::serve(listener, app::router(shop, ledger)).with_graceful_shutdown(interrupt()).await?;
    worker.abort();
    printer.abort();
    print("stopped")
}

/// Waits for Ctrl-C or, where there is such a thing, for the request to terminate.
pub(crate) async fn interrupt() {
    #[cfg(unix)]
    if let Ok(mut terminate) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    drop(tokio::signal::ctrl_c().await);
}
