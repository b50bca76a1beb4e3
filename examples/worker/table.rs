//! What was noted, as a table for people.

use comfy_table::{CellAlignment, ColumnConstraint, Table, TableComponent, presets};
use request_budget::report::Outcome;
use request_budget::resource::Amount;
use request_budget::{Severity, Violation};

use crate::ledger::Run;

/// One line a run, but one for the job that is run so often.
pub(crate) fn table(runs: &[Run]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table.set_header([
        "job",
        "attempt",
        "queries",
        "query\ntime",
        "peak\nmemory",
        "memory\nkept",
        "total\ntime",
        "verdict",
    ]);
    let (imports, others): (Vec<_>, Vec<_>) =
        runs.iter().partition(|run| run.work == "import_prices");
    for run in others {
        table.add_row(row(run, run.work.clone()));
    }
    if let Some(last) = imports.last() {
        table.add_row(row(last, format!("{}, last of {}", last.work, imports.len())));
    }
    for column in table.column_iter_mut() {
        column.set_constraint(ColumnConstraint::ContentWidth);
        if (1..=6).contains(&column.index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn row(run: &Run, label: String) -> [String; 8] {
    let usage = &run.usage;
    let bytes =
        |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| Amount::Bytes(bytes).to_string());
    [
        label,
        run.attempt.clone(),
        usage.queries.to_string(),
        Amount::Time(usage.query_time).to_string(),
        bytes(usage.memory),
        bytes(usage.retained),
        Amount::Time(usage.total_time).to_string(),
        verdict(run),
    ]
}

fn verdict(run: &Run) -> String {
    let names = |severity: Severity| {
        let of = |violation: &&Violation| violation.severity == severity;
        let names: Vec<_> =
            run.violations.iter().filter(of).map(|v| v.resource.to_string()).collect();
        names.join(", ")
    };
    let mut verdicts = Vec::new();
    if run.outcome != Outcome::Ok && run.outcome != Outcome::Cut {
        verdicts.push(run.outcome.to_string());
    }
    for (title, names) in [("cut", names(Severity::Hard)), ("over", names(Severity::Soft))] {
        if !names.is_empty() {
            verdicts.push(format!("{title}: {names}"));
        }
    }
    if verdicts.is_empty() { "ok".to_owned() } else { verdicts.join("; ") }
}
