//! A client that sends the shop one request after the other, and notes what came of each.

use std::time::Duration;

use reqwest::{Client, Method, header};
use tokio::net::TcpListener;

use crate::app::{self, Shop};
use crate::ledger::{self, Ledger};
use crate::table::{self, Row};
use crate::{Failure, findings, jobs, print};

/// Requests to make, in this order: method, path, and what is special about it.
const REQUESTS: &[(Method, &str, Special)] = &[
    (Method::GET, "/posts", Special::Nothing),
    (Method::GET, "/posts/42", Special::Nothing),
    (Method::GET, "/posts/n-plus-one", Special::Nothing),
    (Method::GET, "/comments", Special::Nothing),
    (Method::GET, "/comments/export", Special::Nothing),
    (Method::GET, "/comments/n-plus-one", Special::Nothing),
    (Method::GET, "/feed", Special::Nothing),
    (Method::GET, "/report", Special::Nothing),
    (Method::POST, "/orders", Special::Body(r#"{"customer":"Barbara","posts":[1,2,3]}"#)),
    (Method::GET, "/quote/7", Special::Nothing),
    (Method::GET, "/quote/7?slow=1", Special::Nothing),
    (Method::GET, "/export/hog", Special::Nothing),
    (Method::GET, "/hash", Special::Nothing),
    (Method::GET, "/stuck", Special::Nothing),
    (Method::GET, "/stuck", Special::HangUp),
    (Method::GET, "/panic", Special::Nothing),
];

#[derive(Debug, Clone, Copy)]
enum Special {
    Nothing,
    Body(&'static str),
    /// The client goes away before there is an answer.
    HangUp,
}

pub(crate) async fn all(listener: TcpListener, shop: Shop) -> Result<(), Failure> {
    let (ledger, mut entries) = Ledger::open();
    let address = listener.local_addr()?;
    let app = app::router(shop.clone(), ledger.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    print(&format!("Sending requests to http://{address} (one handler panics, on purpose) ..."))?;

    let client = Client::new();
    let mut rows = Vec::new();
    for (method, path, special) in REQUESTS {
        let status = send(&client, method, &format!("http://{address}{path}"), *special).await;
        let note = if matches!(special, Special::HangUp) { " (hangs up)" } else { "" };
        let (finished, violations) = ledger::next_finished(&mut entries).await?;
        rows.push(Row { label: format!("{method} {path}{note}"), status, finished, violations });
    }
    let worker = tokio::spawn(jobs::run(shop, ledger, 1, Duration::ZERO));
    for _ in 0..jobs::JOBS {
        let (finished, violations) = ledger::next_finished(&mut entries).await?;
        let label = format!("job {}", finished.work);
        rows.push(Row { label, status: None, finished, violations });
    }
    worker.await?;
    server.abort();

    print(&table::limits("The budget of a request", &app::usual()))?;
    print(&table::limits("The budget of GET /comments/export", &app::download()))?;
    print(&format!("\n{}\n", table::table(&rows)))?;
    print(&findings::all(&rows))
}

/// Sends a request and reads the answer to its end; no status where there was no answer.
async fn send(client: &Client, method: &Method, url: &str, special: Special) -> Option<u16> {
    let mut request = client.request(method.clone(), url);
    match special {
        Special::Nothing => {}
        Special::Body(json) => {
            request = request.header(header::CONTENT_TYPE, "application/json").body(json);
        }
        Special::HangUp => request = request.timeout(Duration::from_millis(100)),
    }
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    answer.bytes().await.ok().map(|_| status)
}
