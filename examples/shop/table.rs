//! What was noted, as a table for people.

use comfy_table::{CellAlignment, ColumnConstraint, Table, TableComponent, presets};
use request_budget::report::Outcome;
use request_budget::resource::Amount;
use request_budget::{Budget, Resource, Severity, Violation};

use crate::ledger::Finished;

const WIDTH: usize = 110;
const VERDICT_WIDTH: usize = 32;

/// A unit of work.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) label: String,
    /// What the client saw, if it saw an answer.
    pub(crate) status: Option<u16>,
    pub(crate) finished: Box<Finished>,
    pub(crate) violations: Vec<Violation>,
}

/// The limits of a budget, by name.
pub(crate) fn limits(title: &str, budget: &Budget) -> String {
    let limits = Resource::ALL.iter().filter_map(|resource| {
        let limit = budget.limit(*resource)?;
        let soft = limit.soft_value().map(|soft| format!(" {soft}")).unwrap_or_default();
        let hard = limit.hard_value().map(|hard| format!(" (cut at {hard})")).unwrap_or_default();
        Some(format!("{resource}{soft}{hard}"))
    });
    list(&format!("{title}: "), limits, WIDTH)
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table.set_header([
        "work",
        "status",
        "queries",
        "query\ntime",
        "rows",
        "peak\nmemory",
        "total\ntime",
        "verdict",
    ]);
    for row in rows {
        let usage = &row.finished.usage;
        table.add_row([
            row.label.clone(),
            row.status.map_or("-".to_owned(), |status| status.to_string()),
            usage.queries.to_string(),
            Amount::Time(usage.query_time).to_string(),
            usage.rows.to_string(),
            usage.memory.map_or("-".to_owned(), |bytes| Amount::Bytes(bytes).to_string()),
            Amount::Time(usage.total_time).to_string(),
            verdict(row),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_constraint(ColumnConstraint::ContentWidth);
        if (1..=6).contains(&column.index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn verdict(row: &Row) -> String {
    let is_cut = row.finished.outcome == Outcome::Cut;
    // A limit on calls cuts the call; and an answer that is ready late is still not thrown away.
    let title = |violation: &Violation| match (violation.severity, violation.resource) {
        (Severity::Hard, Resource::ExternalTimeout) => "call cut: ",
        (Severity::Hard, _) if is_cut => "cut: ",
        (Severity::Hard, _) => "ready too late: ",
        _ => "over: ",
    };
    let titles = ["cut: ", "call cut: ", "ready too late: ", "over: "];
    let mut verdicts: Vec<_> = titles
        .into_iter()
        .filter_map(|wanted| {
            let of = |resource: &Resource| {
                row.violations.iter().any(|v| v.resource == *resource && title(v) == wanted)
            };
            let mut names =
                Resource::ALL.iter().filter(|r| of(r)).map(Resource::to_string).peekable();
            names.peek().is_some().then(|| list(wanted, names, VERDICT_WIDTH))
        })
        .collect();
    let outcome = row.finished.outcome;
    if verdicts.is_empty() || matches!(outcome, Outcome::Panicked | Outcome::Cancelled) {
        verdicts.insert(0, outcome.to_string());
    }
    verdicts.join("\n")
}

/// The items after one another, on lines of at most this width, further ones set in.
fn list(title: &str, items: impl Iterator<Item = String>, width: usize) -> String {
    let (mut text, mut column) = (title.to_owned(), title.len());
    for (position, item) in items.enumerate() {
        if position > 0 {
            text.push(',');
            // The comma and the blank before the item, and the comma after it.
            column = column.saturating_add(3).saturating_add(item.len());
            let fits = column <= width;
            text.push_str(if fits { " " } else { "\n  " });
            column = if fits { column.saturating_sub(1) } else { item.len().saturating_add(2) };
        } else {
            column = column.saturating_add(item.len());
        }
        text.push_str(&item);
    }
    text
}
