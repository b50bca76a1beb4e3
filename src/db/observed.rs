//! Statements that are counted after the fact.

use std::time::Duration;

use crate::meter::observed::{Observation, ReportedBy};
use crate::meter::recording::{self, Kind};
use crate::report::elsewhere::note_unattributed;
use crate::report::unmeasured::statements_are_metered;
use crate::scope;

/// Counts a statement that has been executed: for the callbacks of ORMs and drivers.
///
/// It is charged to the unit of work that is running here, as a query with its rows and time, and
/// is in [`Usage::observed`](crate::Usage::observed) as well. It cannot be refused any more; a hard
/// limit that it crosses cuts the work when its poll returns. Where a driver can be wrapped,
/// [`Query`](super::Query) refuses what is too much before it is sent.
///
/// Of a text that a metered connection, an event of sqlx (see `SqlxEvents`) or of Diesel, and a
/// callback report in the same unit of work, each execution counts once. So a text that is executed
/// both on a metered connection and on another one, and of which only this function reports the
/// latter, counts too few.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use request_budget::{Budget, BudgetExt, Limit, db};
///
/// /// What SeaORM calls after each statement, by `DatabaseConnection::set_metric_callback`.
/// fn metric(sql: &str, elapsed: Duration) {
///     db::executed(sql, elapsed, 0);
/// }
///
/// let work = async {
///     for _ in 0..3 {
///         metric("SELECT id FROM posts WHERE author = ?", Duration::from_millis(2));
///     }
///     tokio::task::yield_now().await;
///     unreachable!("cut where it waits first");
/// };
/// let budget = Budget::new().queries(Limit::hard(2));
/// let cut = work.budgeted("posts", budget).await.unwrap_err();
/// assert!(cut.to_string().contains("3 queries, limit 2"), "{cut}");
/// # }
/// ```
pub fn executed(statement: &str, elapsed: Duration, rows: u64) {
    statements_are_metered();
    let reporter = ReportedBy::Callback;
    observe(&Observation { text: statement, time: elapsed, rows, reporter });
}

/// Charges a statement to the unit of work that is running here.
pub(super) fn observe(statement: &Observation<'_>) {
    let Observation { text, time, rows, .. } = *statement;
    let recorded = match scope::current() {
        Some(meter) if !meter.observe(statement) => return,
        Some(meter) => meter.record(Kind::Observed, Some(text)),
        None => {
            note_unattributed();
            recording::record_elsewhere(Kind::Observed, Some(text))
        }
    };
    recorded.add_rows(rows);
    recorded.add_time(time);
}
