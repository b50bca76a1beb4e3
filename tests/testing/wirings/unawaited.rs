//! What is made in the measured work, and not awaited there.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::routing::get;
use futures_util::stream;
use request_budget::testing::measure;
use request_budget::{Budget, BudgetLayer};
use tower::ServiceExt;

use super::{metered, query, warns};

#[tokio::test]
async fn a_streamed_body_that_nobody_reads() {
    let words =
        ["1 response with a streamed body was not read to its end", "in the measured future"];
    warns("unawaited::a_streamed_body_that_nobody_reads", &words, async {
        let pool = metered().await;
        let body = move || {
            let pool = pool.clone();
            let rows = stream::once(async move {
                query(&pool).await;
                Ok::<_, std::io::Error>(Bytes::from("row"))
            });
            async { Body::from_stream(Box::pin(rows)) }
        };
        let app = Router::new().route("/", get(body)).layer(BudgetLayer::new(Budget::new()));
        let request = Request::get("/").body(Body::empty()).unwrap();
        measure(app.oneshot(request)).await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
#[expect(clippy::async_yields_async, reason = "that is the wiring: nobody awaits the future")]
async fn a_future_that_is_returned_and_not_awaited() {
    let words = ["the work returned a future", "`.await` it"];
    warns("unawaited::a_future_that_is_returned_and_not_awaited", &words, async {
        let pool = metered().await;
        measure(async { query(&pool) }).await.assert_queries(0);
    })
    .await;
}

#[tokio::test]
async fn a_future_that_is_made_and_not_awaited() {
    let words = ["the work executed no statement at all", "`.await`"];
    warns("unawaited::a_future_that_is_made_and_not_awaited", &words, async {
        let pool = metered().await;
        let record = measure(async {
            let _made = query(&pool);
        });
        record.await.assert_within(Budget::new().queries(1));
    })
    .await;
}
