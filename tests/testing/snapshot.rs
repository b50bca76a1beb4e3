//! The recipe of the documentation: the queries of a request as a snapshot.

use axum::body::Body;
use axum::http::Request;
use request_budget::ExternalExt;
use request_budget::testing::measure;
use tower::ServiceExt;

use crate::service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_as_a_snapshot() {
    let service = service::service(10).await;
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        service.clone().oneshot(request).await.unwrap().status()
    };
    let record = measure(async {
        ask("/inside_a_transaction/faulty").await;
        ask("/on_an_unmetered_pool/faulty").await;
        async {}.external("payments").await.unwrap();
    });
    let record = record.await;
    insta::assert_json_snapshot!(record);
    // The same again is the same, in whatever time.
    let again = measure(async {
        async {}.external("payments").await.unwrap();
        ask("/on_an_unmetered_pool/faulty").await;
        ask("/inside_a_transaction/faulty").await;
    });
    let [first, second] =
        [record, again.await].map(|record| serde_json::to_string(&record).unwrap());
    assert_eq!(first, second);
}
