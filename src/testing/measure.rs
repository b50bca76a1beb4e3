//! Runs work and records what it does. Call sites are reported up to the frame of this file.

use std::any;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::observer::Observer;
use super::record::{Record, Served};
use super::tickets::Tickets;
use super::watched::Watched;
use crate::budget::Budget;
use crate::limit::Limit;
use crate::memory;
use crate::meter::Meter;
use crate::meter::recording::Recording;
use crate::report::Name;
use crate::scope::{self, InCurrentBudget};

/// Runs a future and records everything that it does.
///
/// The future is a unit of work without limits. What is charged to a
/// [`BudgetLayer`](crate::BudgetLayer) or to [`budgeted`](crate::BudgetExt::budgeted) work inside
/// it is charged to it as well, and so is a spawned task that carries
/// [`in_current_budget`](crate::BudgetExt::in_current_budget). To record what a server does in
/// tasks of its own, use a [`Recorder`](super::Recorder).
///
/// The record ends with the future. The future of a service's `oneshot` ends when the headers of
/// the response are available, so read the body in the measured future if the body executes
/// anything.
///
/// See the [module docs](super).
///
/// # Cancellation
///
/// If the future is dropped before its end, there is no record.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> sqlx::Result<()> {
/// use request_budget::{Budget, sqlx::Pool, testing::measure};
/// use sqlx::SqlitePool;
///
/// let pool = Pool::from(SqlitePool::connect("sqlite::memory:").await?);
/// let record = measure(sqlx::query("SELECT 1").execute(&pool)).await;
/// assert_eq!(record.usage().queries, 1);
/// record.assert_within(Budget::new().queries(1));
/// record.into_output()?;
/// # Ok(()) }
/// ```
#[track_caller]
pub fn measure<F: Future>(future: F) -> impl Future<Output = Record<F::Output>> {
    let here = Location::caller();
    async move {
        let measurement = Measurement::start::<F>(here);
        let output = measurement.run(future).await;
        measurement.end(output, None)
    }
}

/// A measurement that is running.
#[derive(Debug)]
pub(super) struct Measurement {
    pub(super) meter: Arc<Meter>,
    recording: Arc<Recording>,
    tickets: Arc<Tickets>,
    at: &'static Location<'static>,
}

impl Measurement {
    pub(super) fn start<F>(at: &'static Location<'static>) -> Self {
        let recording = Recording::start();
        let (subscriber, tickets) = Observer::subscriber();
        recording.subscribe(subscriber, Observer::is_in_place);
        if any::type_name::<F>().starts_with("tracing::instrument::WithDispatch<") {
            recording.note_mask();
        }
        // A limit switches the timing of polls on.
        let budget = Budget::new().poll_time(Limit::soft(Duration::from_nanos(u64::MAX - 1)));
        let meter = Meter::new(Name::from("measured"), budget, None);
        let meter = Arc::new(meter.recorded_by(recording.clone()));
        meter.link(scope::current());
        Self { meter, recording, tickets, at }
    }

    pub(super) fn run<F: Future>(&self, future: F) -> InCurrentBudget<Watched<F>> {
        let watched = Watched::new(future, self.meter.clone(), self.recording.clone());
        InCurrentBudget::of(Some(self.meter.clone()), watched)
    }

    pub(super) fn end<T>(self, output: T, served: Option<Served>) -> Record<T> {
        self.tickets.settle();
        #[cfg(feature = "mongodb")]
        self.meter.settle_commands();
        let unlogged = memory::aside(|| self.tickets.unlogged());
        Record::new(output, &self.meter, &self.recording, &unlogged, served, self.at)
    }
}
