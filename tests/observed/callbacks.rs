//! `db::executed`, as the callbacks of ORMs and drivers call it.

use std::time::Duration;

use request_budget::db::{Query, executed};
use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Limit, Resource, Usage};
use tokio::task::yield_now;

const MS: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_statement_counts_with_its_time_and_rows() {
    let work = async {
        executed("SELECT a", 3 * MS, 2);
        executed("SELECT a", 5 * MS, 1);
        executed("UPDATE b SET c = 1", MS, 0);
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.queries, usage.observed, usage.repeated_queries), (3, 3, 2));
    assert_eq!((usage.rows, usage.writes, usage.unmetered), (3, 1, 0));
    assert_eq!((usage.query_time, usage.slow_query), (9 * MS, 5 * MS));
}

#[tokio::test]
async fn a_statement_counts_for_all_that_the_work_runs_inside() {
    let inner = async {
        executed("SELECT a", MS, 1);
        Usage::current().unwrap().queries
    };
    let outer = async {
        let inner = inner.budgeted("inner", Budget::new()).await.unwrap();
        let usage = Usage::current().unwrap();
        (inner, usage.queries, usage.observed, usage.rows)
    };
    assert_eq!(outer.budgeted("outer", Budget::new()).await, Ok((1, 1, 1, 1)));
}

#[tokio::test]
async fn a_statement_of_a_metered_connection_is_not_counted_again() {
    let work = async {
        drop(Query::start("SELECT a"));
        executed("SELECT a", MS, 7);
        drop(Query::start("SELECT a"));
        executed("SELECT a", MS, 7);
        executed("SELECT a", MS, 7);
        executed("SELECT b", MS, 0);
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.queries, usage.observed), (4, 2));
    assert_eq!((usage.repeated_queries, usage.rows), (3, 7));
}

#[tokio::test]
async fn a_hard_limit_that_is_crossed_cuts_at_the_end_of_the_poll() {
    for budget in [
        Budget::new().queries(Limit::hard(1)),
        Budget::new().repeated_queries(Limit::hard(1)),
        Budget::new().rows(Limit::hard(3)),
        Budget::new().query_time(Limit::hard(3 * MS)),
        Budget::new().slow_query(Limit::hard(MS)),
        Budget::new().writes(Limit::hard(1)),
    ] {
        let mut reached = 0;
        let work = async {
            executed("DELETE FROM a", 2 * MS, 2);
            executed("DELETE FROM a", 2 * MS, 2);
            reached = 1;
            yield_now().await;
            reached = 2;
        };
        let cut = work.budgeted("work", budget.clone()).await.unwrap_err();
        assert!(cut.violation().cause.is_some(), "{budget}: {cut}");
        assert_eq!(reached, 1, "{budget}");
    }
}

#[tokio::test]
async fn what_no_work_executes_is_unattributed() {
    let before = Query::unattributed();
    executed("SELECT a", MS, 1);
    // Other tests may add to it, none takes away.
    assert!(Query::unattributed() > before);
    assert_eq!(Usage::current(), None);
}

#[tokio::test]
async fn threads_that_report_at_once_lose_nothing() {
    let work = async {
        let report = |n: usize| {
            let report = move || {
                for m in 0..480 {
                    executed(&format!("SELECT {}", (n + m) % 40), MS, 1);
                }
            };
            request_budget::task::spawn_blocking(report)
        };
        for thread in (0..4).map(report).collect::<Vec<_>>() {
            thread.await.unwrap();
        }
        Usage::current().unwrap()
    };
    let usage = work.budgeted("work", Budget::new()).await.unwrap();
    assert_eq!((usage.queries, usage.observed, usage.rows), (1_920, 1_920, 1_920));
    assert_eq!((usage.repeated_queries, usage.query_time), (48, 1_920 * MS));
}

#[tokio::test]
async fn observed_statements_are_in_records_and_assertions() {
    let record = measure(async {
        executed("SELECT name FROM posts WHERE id = 1", MS, 1);
        executed("SELECT name FROM posts WHERE id = 2", MS, 1);
        executed("INSERT INTO visits VALUES (7)", MS, 0);
    })
    .await;
    let texts: Vec<_> =
        record.statements().iter().map(|all| (&*all.text, all.executions, all.rows)).collect();
    assert_eq!(
        texts,
        [("INSERT INTO visits VALUES (?)", 1, 0), ("SELECT name FROM posts WHERE id = ?", 2, 2)]
    );
    let [insert, _] = record.statements() else { panic!("two statements") };
    let place = &insert.sites()[0].places[0];
    assert!(place.file.ends_with("tests/observed/callbacks.rs"), "{place}");
    record.assert_queries(3);
    record.assert_no_unmetered();
    record.assert_within(Budget::new().queries(3).repeated_queries(2).writes(1));
}

#[test]
fn the_limits_have_names() {
    assert_eq!(Resource::Writes.name(), "writes");
    assert_eq!(Budget::new().writes(0).to_string(), "writes 0");
}
