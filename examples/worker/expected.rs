//! What each job is here to show; the example fails if one did not.

use request_budget::Resource;
use request_budget::report::Outcome;

use crate::Failure;
use crate::jobs::IMPORTS;
use crate::ledger::{Noted, Run};
use crate::store::Stored;

/// One run: the job, its attempt, how it ended, and the limits that it crossed.
type Expected = (&'static str, &'static str, Outcome, &'static [Resource]);

const ONCE: [Expected; 9] = [
    ("export_orders", "1", Outcome::Ok, &[Resource::Memory]),
    ("parse_upload", "1", Outcome::Panicked, &[]),
    ("rebuild_report", "1", Outcome::Ok, &[Resource::SlowQuery]),
    ("remind_customers", "1", Outcome::Ok, &[Resource::Queries, Resource::RepeatedQueries]),
    ("send_invoice", "1", Outcome::Ok, &[]),
    ("send_invoice", "1", Outcome::Ok, &[]),
    ("send_invoice", "1", Outcome::Ok, &[]),
    ("sync_stock", "1", Outcome::Cut, &[Resource::TotalTime]),
    ("sync_stock", "2", Outcome::Ok, &[]),
];

const IMPORT: Expected = ("import_prices", "1", Outcome::Ok, &[Resource::Retained]);

/// How many runs there are in all.
pub(crate) const RUNS: usize = ONCE.len().saturating_add(IMPORTS);

pub(crate) fn check(noted: &Noted, stored: &[Stored]) -> Result<(), Failure> {
    let mut runs: Vec<_> = noted.runs.iter().map(|run| (run, limits(run))).collect();
    runs.sort_by(|(a, _), (b, _)| (&a.work, &a.attempt).cmp(&(&b.work, &b.attempt)));
    let mut expected = Vec::from(ONCE);
    expected.extend([IMPORT; IMPORTS]);
    expected.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    if runs.len() != expected.len() {
        return Err(format!("{} runs, not {}", runs.len(), expected.len()).into());
    }
    for ((run, limits), expected) in runs.iter().zip(expected) {
        if (&*run.work, &*run.attempt, run.outcome, &**limits) != expected {
            return Err(format!("{run:?} is not as expected: {expected:?}").into());
        }
    }
    let told = noted.climbs.iter().any(|climb| climb.work == "import_prices");
    if !told || noted.climbs.iter().any(|climb| climb.work != "import_prices") {
        return Err(format!("of memory that climbs this was told: {:?}", noted.climbs).into());
    }
    // As the queue has it: the job that was cut was tried again, the one that panicked was not.
    let stored: Vec<_> = stored.iter().map(|(status, tried)| (&**status, *tried)).collect();
    if stored != [("Done", 1), ("Done", 2), ("Failed", 1)] {
        return Err(format!("in the queue there is {stored:?}").into());
    }
    Ok(())
}

fn limits(run: &Run) -> Vec<Resource> {
    let crossed = |resource: &&Resource| run.violations.iter().any(|v| v.resource == **resource);
    Resource::ALL.iter().filter(crossed).copied().collect()
}
