//! What failures say, word by word.

use std::time::Duration;

use request_budget::db::Query;
use request_budget::testing::{Record, measure};
use request_budget::{Budget, Cut, ExternalExt};
use tokio::time::sleep;

use crate::failure;

/// A statement that takes so many milliseconds and gives so many rows.
async fn execute(text: &str, millis: u64, rows: u64) -> Result<(), Cut> {
    let mut query = Query::start(text)?;
    sleep(Duration::from_millis(millis)).await;
    query.add_rows(rows);
    Ok(())
}

async fn author(millis: u64) -> Result<(), Cut> {
    execute("SELECT name FROM authors WHERE id = ?", millis, 1).await
}

async fn page() -> Result<(), Cut> {
    execute("SELECT id, author FROM posts LIMIT ?", 2, 3).await?;
    for millis in [5, 1, 1] {
        author(millis).await?;
    }
    author(1).await?;
    for name in ["payments", "mail", "payments"] {
        sleep(Duration::from_millis(10)).external(name).await?;
    }
    Ok(())
}

/// What differs from one build to the next is left out: line numbers and bytes.
fn stable(said: &str) -> String {
    let mut stable = String::new();
    for line in said.lines() {
        let line = match (line.split_once(".rs:"), line.starts_with("memory: ")) {
            (_, true) => "memory: ..".to_owned(),
            (Some((before, after)), _) => {
                let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
                format!("{before}.rs:..{after}")
            }
            (None, _) => line.to_owned(),
        };
        stable.push_str(&line);
        stable.push('\n');
    }
    stable
}

async fn record() -> Record<Result<(), Cut>> {
    measure(page()).await
}

#[tokio::test(start_paused = true)]
async fn several_limits_at_once() {
    let record = record().await;
    let budget = Budget::new()
        .queries(3)
        .repeated_queries(2)
        .rows(5)
        .query_time(Duration::from_millis(4))
        .external_calls(2)
        .external_timeout(Duration::from_millis(1))
        .external_timeout_for("mail", Duration::from_millis(10))
        .total_time(Duration::from_millis(20));
    insta::assert_snapshot!(stable(&failure(|| record.assert_within(budget))));
}

#[tokio::test(start_paused = true)]
async fn an_exact_count() {
    let record = record().await;
    insta::assert_snapshot!(stable(&failure(|| record.assert_queries(6))));
}

#[tokio::test(start_paused = true)]
async fn repeated_statements() {
    let record = measure(async {
        for text in [
            "INSERT INTO posts VALUES (?)",
            "UPDATE posts SET title = ? WHERE id = ?",
            "find posts {author: ?}",
        ] {
            execute(text, 1, 0).await?;
            execute(text, 1, 0).await?;
        }
        Ok::<_, Cut>(())
    });
    let record = record.await;
    insta::assert_snapshot!(stable(&failure(|| record.assert_no_repeated_statements())));
}

#[tokio::test(start_paused = true)]
async fn external_calls() {
    let record = record().await;
    insta::assert_snapshot!(stable(&failure(|| record.assert_no_external_calls())));
}

#[tokio::test(start_paused = true)]
async fn what_a_measurement_does_not_see() {
    let record = record().await;
    let budget = Budget::new().response_bytes(1).body_idle(Duration::from_secs(1));
    let said = failure(|| record.assert_within(budget));
    let first: Vec<_> = said.lines().take(2).collect();
    assert_eq!(
        first,
        ["response_bytes", "body_idle"].map(|resource| format!(
            "the budget limits {resource}, but a measurement does not see the body of a response; \
             let a `BudgetLayer` limit it"
        ))
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_allowed_passes() {
    let record = record().await;
    record.assert_queries(5);
    record.assert_no_unmetered();
    record.assert_within(
        Budget::new()
            .queries(5)
            .repeated_queries(4)
            .rows(7)
            .transactions(0)
            .query_time(Duration::from_millis(10))
            .slow_query(Duration::from_millis(5))
            .connection_wait(Duration::ZERO)
            .external_calls(3)
            .external_time(Duration::from_millis(30))
            .external_timeout(Duration::from_millis(10))
            .total_time(Duration::from_millis(40))
            .memory(1 << 20)
            .allocated(1 << 20)
            .retained(1 << 20),
    );
    assert_eq!(record.into_output(), Ok(()));
}
