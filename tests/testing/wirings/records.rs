//! Measurements that nobody judges, and those that are as they should be.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::get;
use request_budget::testing::{measure, scaling};
use request_budget::{Budget, BudgetExt, BudgetLayer, task};
use tower::ServiceExt;

use super::{metered, query, said, warns};

#[tokio::test]
async fn a_record_nothing_is_asserted_on() {
    let words = ["nothing was asserted on what was measured at tests/testing/wirings/records.rs:"];
    warns("records::a_record_nothing_is_asserted_on", &words, async {
        let pool = metered().await;
        measure(query(&pool)).await.into_output();
    })
    .await;
    let said = said("records::a_record_nothing_is_asserted_on", async {}).await;
    assert_eq!(said.map_or(1, |said| said.matches("warning").count()), 1);
}

#[tokio::test]
async fn a_scaling_nothing_is_asserted_on() {
    let words = ["nothing was asserted on what was measured at tests/testing/wirings/records.rs:"];
    warns("records::a_scaling_nothing_is_asserted_on", &words, async {
        let pool = metered().await;
        drop(scaling([1, 2], async |_| measure(query(&pool)).await).await);
    })
    .await;
}

#[tokio::test]
async fn what_is_wired_well_warns_of_nothing() {
    let said = said("records::what_is_wired_well_warns_of_nothing", async {
        let pool = metered().await;
        // What is asserted on, what is looked at, what waits for a clock, and what is carried
        // along.
        measure(query(&pool)).await.assert_queries(1);
        assert_eq!(measure(query(&pool)).await.usage().queries, 1);
        let record = measure(query(&pool)).await;
        assert_eq!(record.statements().len(), 1);
        assert!(!format!("{record:?}").is_empty());
        let sleep = tokio::time::sleep(Duration::from_millis(1));
        measure(sleep).await.assert_queries(0);
        let record = measure(async {
            query(&pool).await;
            let [child, pool] = [pool.clone(), pool.clone()];
            task::spawn(async move { query(&child).await }).await.unwrap();
            let job = async move { query(&pool).await }.budgeted("job", Budget::new());
            tokio::spawn(job).await.unwrap().unwrap();
        });
        record.await.assert_queries(2);
        // A background poller and a page that waits for something else.
        let poller = tokio::spawn(async move {
            loop {
                query(&pool).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let sleep = tokio::time::sleep(Duration::from_millis(30));
        measure(sleep).await.assert_queries(0);
        // Something else that ends while the poller is at work.
        let carried = async {
            let child = task::spawn(tokio::time::sleep(Duration::from_millis(30)));
            child.await.unwrap();
        };
        measure(carried).await.assert_queries(0);
        poller.abort();
        let app = Router::new().route("/", get("hello")).layer(BudgetLayer::new(Budget::new()));
        let request = Request::get("/").body(Body::empty()).unwrap();
        measure(app.oneshot(request)).await.assert_queries(0);
    });
    assert_eq!(said.await.unwrap_or_default(), "");
}
