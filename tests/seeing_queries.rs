//! A limit on queries in a process with a metered pool. One test only: the pool is that of the
//! process.

mod health;

use request_budget::db::Query;
use request_budget::db::sqlx::Pool;
use request_budget::{Budget, BudgetExt};
use sqlx::{Executor, Sqlite, SqlitePool};

#[tokio::test]
async fn a_pool_alone_is_enough_and_what_runs_in_no_work_is_counted_as_such() {
    let health = health::listen();
    let raw = SqlitePool::connect_lazy("sqlite::memory:").expect("the address is right");
    let pool: Pool<Sqlite> = raw.into();
    // A pool that nobody uses: no statement was counted, but every one would have been.
    let budget = Budget::new().queries(1).repeated_queries(1).rows(1).transactions(1);
    async {}.budgeted("idle", budget.clone()).await.expect("nothing is crossed");
    assert_eq!(health.heard(), []);
    // The same ears do hear what cannot be measured.
    async {}.budgeted("memory", budget.memory(1)).await.expect("nothing is crossed");
    let [(_, resources, _)] = &health.heard()[..] else { panic!("one event") };
    assert_eq!(resources, "memory");

    let execute = async |times: u32| {
        for _ in 0..times {
            pool.execute("SELECT 1").await.expect("it is a good statement");
        }
    };
    assert_eq!(Query::unattributed(), 0);
    execute(2).await;
    assert_eq!(Query::unattributed(), 2);
    execute(3).budgeted("work", Budget::new()).await.expect("no limit");
    assert_eq!(Query::unattributed(), 2);
    let stray = async {
        let pool = pool.clone();
        let stray = async move { pool.execute("SELECT 1").await.map(drop) };
        tokio::spawn(stray).await.expect("it does not panic")
    };
    stray.budgeted("work", Budget::new()).await.expect("no limit").expect("a good statement");
    assert_eq!(Query::unattributed(), 3);
}
