//! More data, more queries?

use request_budget::db::Query;
use request_budget::testing::{Record, Scaling, measure, scaling};
use request_budget::{Budget, Cut};

use crate::failure;

async fn list(posts: u64, joins: bool) -> Result<(), Cut> {
    drop(Query::start("SELECT id FROM posts")?);
    if joins {
        drop(Query::start("SELECT name FROM authors WHERE id = ANY(?)")?);
        return Ok(());
    }
    for _ in 0..posts {
        drop(Query::start("SELECT name FROM authors WHERE id = ?")?);
    }
    Ok(())
}

#[tokio::test]
async fn what_grows_is_named() {
    let run = scaling([10, 1, 3], async |posts| measure(list(posts, false)).await).await;
    let said = failure(|| run.assert_constant_queries());
    let start: Vec<_> = said.lines().take(4).collect();
    let expected = [
        "queries grow with the data: 2 at size 1, 4 at size 3, 11 at size 10",
        "`SELECT name FROM authors WHERE id = ?`: 1 at size 1, 3 at size 3, 10 at size 10",
        "",
        "what it did at size 10",
    ];
    assert_eq!(start, expected, "{said}");
    assert!(said.contains("executed 10 times: fetch all at once"), "{said}");
}

#[tokio::test]
async fn what_does_not_grow_passes() {
    let run = scaling([1, 10], async |posts| measure(list(posts, true)).await).await;
    run.assert_constant_queries();
    // Nor what shrinks.
    let run = scaling([1, 2], async |n| measure(list(10 - n, false)).await).await;
    run.assert_constant_queries();
}

#[tokio::test]
async fn a_statement_that_grows_while_another_shrinks_is_found() {
    let run = scaling([1, 2], async |n| {
        measure(async move {
            for text in if n == 1 { ["a", "b", "b"] } else { ["a", "a", "b"] } {
                drop(Query::start(text)?);
            }
            Ok::<_, Cut>(())
        })
        .await
    });
    let run = run.await;
    let said = failure(|| run.assert_constant_queries());
    assert!(said.starts_with("`a`: 1 at size 1, 2 at size 2\n"), "{said}");
}

#[tokio::test]
async fn one_size_shows_nothing() {
    let record = measure(list(1, true)).await;
    let empty: [(u64, Record); 0] = [];
    let none = std::panic::catch_unwind(|| Scaling::from_iter(empty).assert_constant_queries());
    let none = *none.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(none, "no size was measured: two or more show whether queries grow");
    let same = Scaling::from_iter([(1, record.clone()), (1, record.clone())]);
    let one = std::panic::catch_unwind(|| same.assert_constant_queries());
    let one = *one.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(one, "one size was measured: two or more show whether queries grow");
    record.assert_within(Budget::new().queries(2));
}
