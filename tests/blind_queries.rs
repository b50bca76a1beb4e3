//! A limit on queries in a process that counts none. One test only: it is said once a process.

mod health;

use std::time::Duration;

use request_budget::db::Query;
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
    assert_eq!(work.budgeted("job", budget).await, Ok(1));
    assert_eq!(health.heard().len(), 1);
}
