//! A limit on queries in a process that counts none. One test only: it is said once a process.

mod health;

use std::time::Duration;

use mongodb::options::ClientOptions;
use request_budget::db::Query;
use request_budget::mongodb::{Detail, instrument};
use request_budget::{Budget, BudgetExt, Limit, Usage};
use tracing::Level;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_query_limit_without_a_metered_pool_is_said_once() {
    let health = health::listen();
    async {}.budgeted("free", Budget::new()).await.expect("no limit");
    async {}.budgeted("calls", Budget::new().external_calls(1)).await.expect("nothing is crossed");
    assert_eq!(health.heard(), [], "who limits no statements is told nothing");

    let budget = Budget::new()
        .queries(Limit::soft(1).and_hard(2))
        .query_time(Duration::from_secs(1))
        .connection_wait(Duration::from_secs(1))
        .total_time(Duration::from_secs(600));
    let works = (0..100).map(|_| tokio::spawn(async {}.budgeted("job", budget.clone())));
    for work in works.collect::<Vec<_>>() {
        assert_eq!(work.await.expect("it does not panic"), Ok(()));
    }
    let names = "queries, query_time, connection_wait";
    let said = format!(
        "a budget limits {names}, but no metered pool or client exists in this process: these \
         limits can never be crossed, whatever the work uses"
    );
    assert_eq!(health.heard(), [(Level::WARN, names.to_owned(), said)]);

    async {}.budgeted("other", Budget::new().rows(1)).await.expect("nothing is crossed");
    assert_eq!(health.heard().len(), 1, "once a process, also for a limit not named then");

    // A client that is metered by hand is one as well.
    let work = async {
        drop(Query::start("GET user:*"));
        Usage::current().expect("it runs in a unit of work").queries
    };
    assert_eq!(work.budgeted("job", budget.clone()).await, Ok(1));
    assert_eq!(health.heard().len(), 1);

    // One that only counts sees that there are commands, and not which.
    let told_apart = Budget::new().queries(9).repeated_queries(1).rows(1).transactions(1);
    async {}.budgeted("job", told_apart.clone()).await.expect("nothing is crossed");
    assert_eq!(health.heard().len(), 1);
    instrument(&mut ClientOptions::default(), Detail::Commands);
    async {}.budgeted("job", told_apart.clone()).await.expect("nothing is crossed");
    assert_eq!(health.heard().len(), 1);
    instrument(&mut ClientOptions::default(), Detail::Counts);
    async {}.budgeted("job", budget).await.expect("nothing is crossed");
    assert_eq!(health.heard().len(), 1, "what is limited is counted");
    for _ in 0..2 {
        async {}.budgeted("job", told_apart.clone()).await.expect("nothing is crossed");
    }
    let names = "repeated_queries, rows, transactions";
    let said = format!(
        "a budget limits {names}, but a MongoDB client of this process counts commands without \
         knowing which (`Detail::Counts`): these limits see nothing of it"
    );
    assert_eq!(health.heard()[1..], [(Level::WARN, names.to_owned(), said)]);

    let response = Budget::new().response_bytes(1);
    async {}.budgeted("job", response).await.expect("nothing is crossed");
    let said = "a budget limits response_bytes, but a task has no response: these limits can never \
                be crossed by one";
    assert_eq!(health.heard()[2..], [(Level::WARN, "response_bytes".to_owned(), said.to_owned())]);
}
