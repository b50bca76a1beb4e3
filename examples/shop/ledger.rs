//! Where the library reports to: hands everything to whoever prints it.

use std::time::Duration;

use request_budget::report::{Outcome, Report, Reporter, Tally};
use request_budget::{Usage, Violation};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Failure;

/// A reporter that only sends on: it runs inside the request, so it must not wait or print.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(UnboundedSender<Entry>);

#[derive(Debug)]
pub(crate) enum Entry {
    Violation(Box<Violation>),
    Finished(Box<Finished>),
}

/// A unit of work that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) work: String,
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    /// The statement that ran most often.
    pub(crate) statement: Option<String>,
    /// The external system that was called most often.
    pub(crate) external: Option<String>,
}

impl Ledger {
    pub(crate) fn open() -> (Self, UnboundedReceiver<Entry>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    fn send(&self, entry: Entry) {
        // Nobody listens any more while the program ends.
        drop(self.0.send(entry));
    }
}

impl Reporter for Ledger {
    fn violation(&self, violation: &Violation) {
        self.send(Entry::Violation(Box::new(violation.clone())));
    }

    fn finished(&self, report: &Report<'_>) {
        let text = |tally: Tally<'_>| tally.text.to_owned();
        self.send(Entry::Finished(Box::new(Finished {
            work: report.work().to_string(),
            outcome: report.outcome(),
            usage: report.usage(),
            statement: report.statements().max_by_key(|tally| tally.times).map(text),
            external: report.external_calls().max_by_key(|tally| tally.times).map(text),
        })));
    }
}

/// Waits for the end of the one unit of work that is in flight, and for all that was said of it.
pub(crate) async fn next_finished(
    entries: &mut UnboundedReceiver<Entry>,
) -> Result<(Box<Finished>, Vec<Violation>), Failure> {
    let mut violations = Vec::new();
    let collect = async {
        while let Some(entry) = entries.recv().await {
            match entry {
                Entry::Violation(violation) => violations.push(*violation),
                Entry::Finished(finished) => return Some(finished),
            }
        }
        None
    };
    let finished = tokio::time::timeout(Duration::from_secs(30), collect).await;
    let finished = finished.map_err(|_| "a unit of work has not been reported for 30 s")?;
    Ok((finished.ok_or("the ledger was closed")?, violations))
}
