//! Assertions on repeated statements, and the statements that may be repeated.

use std::panic::Location;

use super::advice;
use super::assertions::{blindness, over};
use super::doubts;
use super::message::Failure;
use super::record::{Account, Record, Statement};
use super::statement::normalise;
use crate::budget::Limits;
use crate::escape::Escaped;
use crate::resource::Resource;

impl<T> Record<T> {
    /// Asserts that no statement was executed more than once, whatever its values.
    ///
    /// A statement that is repeated on purpose is allowed by
    /// [`assert_no_repeated_statements_except`](Self::assert_no_repeated_statements_except), or has
    /// a limit of its own by [`Budget::repeated_queries_for`](crate::Budget::repeated_queries_for).
    ///
    /// # Panics
    ///
    /// As [`assert_queries`](Self::assert_queries).
    #[track_caller]
    pub fn assert_no_repeated_statements(&self) {
        self.assert_no_repeated_statements_except(&[]);
    }

    /// Asserts that no other statement than these was executed more than once, whatever its values.
    ///
    /// Each is given by its text, with any values, as it is in the program or as a failed assertion
    /// prints it.
    ///
    /// # Panics
    ///
    /// As [`assert_queries`](Self::assert_queries).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
    /// use request_budget::{sqlx::Pool, testing};
    /// use sqlx::SqlitePool;
    ///
    /// let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
    /// let record = testing::measure(async {
    ///     for _ in 0..2 {
    ///         sqlx::query("SELECT random()").execute(&pool).await?;
    ///     }
    ///     let name = "SELECT name FROM sqlite_master WHERE rowid = $1";
    ///     sqlx::query(name).bind(1).execute(&pool).await
    /// });
    /// let record = record.await;
    /// record.assert_no_repeated_statements_except(&["SELECT random()"]);
    /// record.into_output().map(drop)
    /// # }
    /// ```
    #[track_caller]
    pub fn assert_no_repeated_statements_except(&self, allowed: &[&str]) {
        let account = self.account();
        let allowed: Vec<_> = allowed.iter().map(|text| Allowed::new(text)).collect();
        let mut failure = Failure::default();
        failure.extend(blindness(account, "the test looks for repeated statements"));
        if failure.is_empty() {
            doubts::warn_of_nothing(account, Location::caller());
        }
        let repeated = account.all_statements().filter(|statement| statement.repetitions > 1);
        for statement in repeated.filter(|it| !allowed.iter().any(|allowed| allowed.is(it))) {
            failure.push(
                format!(
                    "`{}` was executed {} times",
                    Escaped(&statement.text),
                    statement.repetitions
                ),
                vec![advice::repeated(statement)],
            );
        }
        failure.panic_unless_empty(account, "what it did", Location::caller());
    }
}

/// Finds the statements that were repeated more often than allowed.
pub(super) fn check(failure: &mut Failure, account: &Account, limits: &Limits) {
    let named: Vec<_> = limits
        .repetitions()
        .iter()
        .map(|named| (Allowed::new(&named.text), named.bounds.soft.min(named.bounds.hard)))
        .collect();
    let limit_of = |statement: &Statement| {
        named.iter().find(|(allowed, _)| allowed.is(statement)).map(|(_, limit)| *limit)
    };
    for statement in account.all_statements() {
        let limit = limit_of(statement).filter(|limit| statement.repetitions > *limit);
        if let Some(limit) = limit {
            let over = over(Resource::RepeatedQueries, statement.repetitions, limit);
            let finding = format!("{over}: `{}`", Escaped(&statement.text));
            failure.push(finding, vec![advice::repeated(statement)]);
        }
    }
    let of_others = || account.all_statements().filter(|it| limit_of(it).is_none());
    let most = |statement: &Statement| statement.repetitions;
    let recorded = account.all_statements().map(most).max().unwrap_or_default();
    let of_others_recorded = of_others().map(most).max().unwrap_or_default();
    // The text of executions that were counted but not recorded is unknown.
    let observed = match account.usage.repeated_queries {
        counted if counted > recorded => counted,
        _ => of_others_recorded,
    };
    let bounds = limits.on(Resource::RepeatedQueries);
    let limit = bounds.soft.min(bounds.hard);
    if observed > limit {
        let over = over(Resource::RepeatedQueries, observed, limit);
        failure.push(over, advice::queries(account, of_others()));
    }
}

/// A statement that may be repeated, in the form that records use.
struct Allowed {
    texts: Vec<String>,
}

impl Allowed {
    /// In a record the text has no values, and which tokens are values depends on the database.
    fn new(text: &str) -> Self {
        let databases = ["", "PostgreSQL", "MySQL", "SQLite"];
        let mut texts: Vec<_> =
            databases.iter().map(|database| normalise(text, database)).collect();
        texts.push(text.to_owned());
        Self { texts }
    }

    fn is(&self, statement: &Statement) -> bool {
        self.texts.contains(&statement.text)
    }
}
