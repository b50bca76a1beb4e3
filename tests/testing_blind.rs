//! Forgotten wiring is a failure. One test only, because it begins in a process that counts
//! nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use request_budget::db::Query;
use request_budget::testing::{measure, scaling};
use request_budget::{Budget, Limit};
use sqlx::{Executor, SqlitePool};

/// The first lines of what a failing assertion says.
fn failure(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("it passes, blind");
    let said = *panic.downcast::<String>().expect("panics say something");
    said.split("\n\n").next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_nothing_measures_cannot_pass() {
    // A budget on queries, in a process without any metered pool.
    let idle = measure(async {}).await;
    let none = "but no metered pool or client exists in this process";
    let budget = || Budget::new().queries(10).rows(Limit::hard(5));
    let said = failure(|| idle.assert_within(budget()));
    assert_eq!(said, format!("the budget limits queries, rows, {none}"));
    let said = failure(|| idle.assert_queries(0));
    assert_eq!(said, format!("the test counts queries, {none}"));
    let said = failure(|| idle.assert_no_repeated_statements());
    assert_eq!(said, format!("the test looks for repeated statements, {none}"));
    let sizes = scaling([1, 2], async |_| measure(async {}).await).await;
    let said = failure(|| sizes.assert_constant_queries());
    let at = |size: u32| format!("the test counts queries at size {size}, {none}");
    assert_eq!(said, format!("{}\n{}", at(1), at(2)));
    // What needs no metering is judged.
    idle.assert_within(Budget::new().external_calls(0));
    idle.assert_no_external_calls();
    idle.assert_no_unmetered();

    // Memory, without the allocator.
    assert_eq!(idle.usage().memory, None);
    let said = failure(|| idle.assert_within(Budget::new().memory(1 << 30).retained(0)));
    let none = "but the counting allocator is not installed in this process";
    assert_eq!(said, format!("the budget limits memory, retained, {none}"));

    // Statements on a pool that nobody wrapped, still with no metered one in the process, and then
    // with one.
    let plain = SqlitePool::connect("sqlite::memory:").await.expect("it needs no server");
    for _ in 0..2 {
        let record = measure(async {
            for _ in 0..3 {
                plain.execute("SELECT 1").await.expect("it is a good statement");
            }
        });
        let record = record.await;
        let why =
            "but no metered pool or client took part in the work, while 3 statements ran unmetered";
        let said = failure(|| record.assert_within(budget()));
        assert_eq!(said, format!("the budget limits queries, rows, {why}"));
        let said = failure(|| record.assert_queries(3));
        assert_eq!(said, format!("the test counts queries, {why}"));
        let said = failure(|| record.assert_queries(0));
        assert_eq!(
            said,
            format!("the test counts queries, {why}\n3 queries, expected 0: 3 too many")
        );
        let said = failure(|| record.assert_no_repeated_statements());
        assert_eq!(
            said,
            format!(
                "the test looks for repeated statements, {why}\n`SELECT ?` was executed 3 times"
            )
        );
        drop(Query::start("GET user:*").expect("nothing is limited here"));
    }

    // With something metered in the process, none is none.
    let idle = measure(async {}).await;
    idle.assert_within(budget());
    idle.assert_queries(0);
}
