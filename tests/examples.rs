//! The examples that are there to be copied: the one works, the other fails as it says.

#[path = "../examples/axum_min.rs"]
#[expect(dead_code, reason = "it is a program of its own")]
mod axum_min;
#[path = "../examples/ci_min.rs"]
#[expect(dead_code, reason = "it is a program of its own")]
mod ci_min;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use request_budget::testing::measure;
use tower::ServiceExt;

#[tokio::test]
async fn the_service_answers_and_is_counted() {
    let app = axum_min::app().await.expect("it needs no server");
    let request = Request::get("/posts").body(Body::empty()).expect("a good request");
    let record = measure(async {
        let answer = app.oneshot(request).await.expect("routers do not fail");
        assert_eq!(answer.status(), StatusCode::OK);
        to_bytes(answer.into_body(), 1_000).await.expect("it is all there")
    });
    let record = record.await;
    record.assert_queries(1);
    assert_eq!(record.into_output(), r#"["hello"]"#);
}

#[tokio::test]
async fn the_test_fails_at_the_line_of_the_statement_that_repeats() {
    let failed = tokio::spawn(ci_min::a_page_takes_two_queries()).await.expect_err("an N+1");
    let said = failed.into_panic().downcast::<String>().expect("a message");
    assert!(said.starts_with("3 queries, limit 2: 1 too many\n"), "{said}");
    assert!(
        said.contains("     2x SELECT name FROM authors WHERE id = ?  <- repeated\n"),
        "{said}"
    );
    let source = include_str!("../examples/ci_min.rs");
    let line = source.lines().position(|line| line.contains("// an N+1")).expect("it is there") + 1;
    assert!(said.contains(&format!("/examples/ci_min.rs:{line}\n")), "{said}");
}
