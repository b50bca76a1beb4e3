//! Asserts that the same work on more data takes no more queries.

use std::panic::Location;

use super::advice;
use super::assertions::blindness;
use super::doubts;
use super::message::Failure;
use super::record::{Account, Record, Statement};
use super::warning::Judged;
use crate::escape::Escaped;

/// The same work, measured at several sizes of its data.
///
/// Finds an N+1 without a limit that has to be chosen: correct work takes as many queries for ten
/// rows as for two. Created by [`scaling`], or collected from pairs of a size and a [`Record`].
#[derive(Debug, Clone)]
#[must_use = "it asserts nothing by itself"]
pub struct Scaling {
    /// By size.
    runs: Vec<(u64, Account)>,
    /// Of the first record, where there is one.
    judged: Option<Judged>,
}

/// Measures the same work at each of these sizes.
///
/// The closure prepares that much data, outside of the measurement, and measures the work. Choose
/// sizes at which the work takes the same path: 1 and 10, for example, and not 0, where further
/// queries may be skipped.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
/// use request_budget::{sqlx::Pool, testing};
/// use sqlx::SqlitePool;
///
/// let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
/// sqlx::query("CREATE TABLE posts (title TEXT)").execute(&pool).await?;
/// let scaling = testing::scaling([1, 10], async |posts| {
///     for _ in 0..posts {
///         sqlx::query("INSERT INTO posts VALUES ('hello')").execute(&pool).await.unwrap();
///     }
///     testing::measure(sqlx::query("SELECT title FROM posts").fetch_all(&pool)).await
/// });
/// scaling.await.assert_constant_queries();
/// # Ok(()) }
/// ```
pub async fn scaling<T>(
    sizes: impl IntoIterator<Item = u64>,
    mut measure: impl AsyncFnMut(u64) -> Record<T>,
) -> Scaling {
    let mut runs = Vec::new();
    for size in sizes {
        runs.push((size, measure(size).await));
    }
    runs.into_iter().collect()
}

impl<T> FromIterator<(u64, Record<T>)> for Scaling {
    fn from_iter<I: IntoIterator<Item = (u64, Record<T>)>>(runs: I) -> Self {
        let mut judged = None;
        let account = |(size, record): (u64, Record<T>)| {
            judged.get_or_insert_with(|| Judged::later(record.measured_at()));
            (size, record.account().clone())
        };
        let mut runs: Vec<_> = runs.into_iter().map(account).collect();
        runs.sort_by_key(|(size, _)| *size);
        Self { runs, judged }
    }
}

impl Scaling {
    /// Asserts that the work takes no more queries at a larger size than at the smallest.
    ///
    /// Statements that passed through no metered connection count as well.
    ///
    /// # Panics
    ///
    /// Panics if it takes more, and names the statements that grew; if there are fewer than two
    /// sizes; and if nothing counted statements: see [not blind](super#not-blind).
    #[track_caller]
    pub fn assert_constant_queries(&self) {
        self.judged.iter().for_each(Judged::now);
        let [(smallest, base), larger @ ..] = &self.runs[..] else {
            panic!("no size was measured: two or more show whether queries grow");
        };
        let Some((largest, most)) = larger.last().filter(|(largest, _)| largest > smallest) else {
            panic!("one size was measured: two or more show whether queries grow");
        };
        let mut failure = Failure::default();
        for (size, account) in &self.runs {
            failure.extend(blindness(account, &format!("the test counts queries at size {size}")));
        }
        let place = Location::caller();
        if failure.is_empty() {
            doubts::warn_of_nothing(most, place);
        }
        if larger.iter().any(|(_, account)| account.queries() > base.queries()) {
            let counts = self.counts(Account::queries);
            failure.push(format!("queries grow with the data: {counts}"), Vec::new());
        }
        for statement in most.all_statements() {
            let executions = |account: &Account| executions(account, &statement.text);
            if larger.iter().any(|(_, account)| executions(account) > executions(base)) {
                failure.push(
                    format!("`{}`: {}", Escaped(&statement.text), self.counts(executions)),
                    vec![advice::repeated(statement)],
                );
            }
        }
        failure.panic_unless_empty(most, &format!("what it did at size {largest}"), place);
    }

    /// "2 at size 1, 11 at size 10".
    fn counts(&self, count: impl Fn(&Account) -> u64) -> String {
        let at = |(size, account): &(u64, Account)| format!("{} at size {size}", count(account));
        self.runs.iter().map(at).collect::<Vec<_>>().join(", ")
    }
}

fn executions(account: &Account, text: &str) -> u64 {
    let same = account.all_statements().filter(|statement| statement.text == text);
    same.map(|Statement { executions, .. }| executions).sum()
}
