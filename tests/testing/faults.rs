//! Each fault of the sample service fails an assertion that names its line; without the faults all
//! pass.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use request_budget::Budget;
use request_budget::testing::{Record, measure};
use tower::ServiceExt;

use crate::{failure, service};

async fn get(what: &str, how: &str) -> Record<Response<Body>> {
    let service = service::service(10).await;
    let request = Request::get(format!("/{what}/{how}")).body(Body::empty()).unwrap();
    let record = measure(service.oneshot(request)).await;
    let answer = record.map(Result::unwrap);
    assert_eq!(answer.output().status(), StatusCode::OK);
    answer
}

/// The fault fails the assertion, with this first line and with this place, and without it all is
/// well.
async fn check(
    what: &str,
    assertion: impl Fn(&Record<Response<Body>>),
    first: &str,
    line: u32,
) -> String {
    assertion(&get(what, "repaired").await);
    let record = get(what, "faulty").await;
    let said = failure(|| assertion(&record));
    let place = format!(" at tests/testing/service.rs:{line}\n");
    assert!(said.contains(&place) || said.contains(&place.replace('\n', ":")), "{place}{said}");
    let (start, _) = said.split_once('\n').unwrap();
    let digits = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    match first.contains('#') {
        true => assert_eq!(digits(start), first.replace('#', "")),
        false => assert_eq!(start, first),
    }
    said
}

const N_PLUS_ONE: &str = "`SELECT name FROM authors WHERE id = ?` was executed 10 times";

fn no_repeated(record: &Record<Response<Body>>) {
    record.assert_no_repeated_statements();
}

fn few(record: &Record<Response<Body>>) {
    record.assert_within(Budget::new().queries(2).repeated_queries(1));
}

#[tokio::test]
async fn n_plus_one_in_a_loop() {
    check("in_a_loop", no_repeated, N_PLUS_ONE, service::IN_A_LOOP).await;
    let first = "10 queries, limit 2: 8 too many";
    let said = check("in_a_loop", few, first, service::IN_A_LOOP).await;
    eprintln!("{said}");
}

#[tokio::test]
async fn n_plus_one_behind_join_all() {
    let said = check("behind_join_all", no_repeated, N_PLUS_ONE, service::BEHIND_JOIN_ALL).await;
    assert!(said.contains("fetch all at once, by a join or `WHERE .. = ANY($1)`"), "{said}");
}

#[tokio::test]
async fn n_plus_one_in_a_spawned_child() {
    check("in_a_spawned_child", no_repeated, N_PLUS_ONE, service::IN_A_SPAWNED_CHILD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n_plus_one_in_a_child_on_another_thread() {
    check(
        "in_a_spawned_child",
        few,
        "11 queries, limit 2: 9 too many",
        service::IN_A_SPAWNED_CHILD,
    )
    .await;
}

#[tokio::test]
async fn n_plus_one_inside_a_transaction() {
    check("inside_a_transaction", no_repeated, N_PLUS_ONE, service::INSIDE_A_TRANSACTION).await;
}

#[tokio::test]
async fn n_plus_one_through_a_generic_repository() {
    let line = service::IN_A_REPOSITORY;
    let said = check("through_a_repository", no_repeated, N_PLUS_ONE, line).await;
    let caller = service::CALLER_OF_THE_REPOSITORY;
    assert!(said.contains(&format!("called from tests/testing/service.rs:{caller}\n")), "{said}");
}

#[tokio::test]
async fn an_unmetered_pool() {
    let line = service::ON_AN_UNMETERED_POOL;
    let no_unmetered = |record: &Record<_>| record.assert_no_unmetered();
    let first = "1 statement passed through no metered connection";
    check("on_an_unmetered_pool", no_unmetered, first, line).await;
    let first = "the budget limits queries, repeated_queries, but no metered pool or client took \
                 part in the work, while 1 statement ran unmetered";
    check("on_an_unmetered_pool", few, first, line).await;
}

#[tokio::test]
async fn an_unbounded_select() {
    let bounded = |record: &Record<_>| record.assert_within(Budget::new().rows(5));
    let first = "10 rows, limit 5: 5 too many";
    let said = check("an_unbounded_select", bounded, first, service::AN_UNBOUNDED_SELECT).await;
    assert!(said.contains("bound it with a LIMIT"), "{said}");
}

#[tokio::test]
async fn a_memory_hog() {
    let small = |record: &Record<_>| record.assert_within(Budget::new().memory(1 << 20));
    let first = "#.# MiB of memory at peak, limit #.# MiB: #.# MiB too much";
    let said = check("a_memory_hog", small, first, service::A_MEMORY_HOG).await;
    assert!(said.contains("row by row"), "{said}");
}
