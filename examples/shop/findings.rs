//! Each violation in one line, and what it had come to when the work ended.

use std::fmt::Write;

use request_budget::resource::Amount;
use request_budget::{Resource, Violation};

use crate::ledger::Finished;
use crate::table::Row;

pub(crate) fn all(rows: &[Row]) -> String {
    let mut text = String::from("Each violation, as it was reported at the moment of crossing:\n");
    for Row { violations, finished, .. } in rows {
        for violation in violations {
            let _ = writeln!(text, "{} {violation}", violation.severity.name());
        }
        let violated = |resource: &Resource| violations.iter().find(|v| v.resource == *resource);
        let violated = Resource::ALL.iter().filter_map(violated);
        let news: Vec<_> = violated.filter_map(|v| in_the_end(v, finished)).collect();
        if !news.is_empty() {
            let _ = writeln!(text, "     in the end {}", news.join("; "));
        }
    }
    text
}

/// The final figure of a resource, if it says more than the violation did.
fn in_the_end(violation: &Violation, finished: &Finished) -> Option<String> {
    let Finished { usage, statement, external, .. } = finished;
    let final_amount = match violation.resource {
        Resource::Queries => Amount::Count(usage.queries),
        Resource::RepeatedQueries => Amount::Count(usage.repeated_queries),
        Resource::Rows => Amount::Count(usage.rows),
        Resource::QueryTime => Amount::Time(usage.query_time),
        Resource::Memory => Amount::Bytes(usage.memory?),
        Resource::PollTime => Amount::Time(usage.poll_time?),
        Resource::ResponseBytes => Amount::Bytes(usage.response_bytes),
        Resource::ExternalCalls => Amount::Count(usage.external_calls),
        _ => return None,
    };
    let text = match violation.resource {
        Resource::RepeatedQueries => format!("`{}` {final_amount} times", statement.as_ref()?),
        Resource::ExternalCalls => {
            format!("{final_amount} external calls, most to {:?}", external.as_ref()?)
        }
        Resource::Queries => format!("{final_amount} queries"),
        Resource::Rows => format!("{final_amount} rows"),
        Resource::PollTime => format!("{final_amount} in the longest poll"),
        resource => format!("{final_amount} of {}", resource.name().replace('_', " ")),
    };
    (final_amount > violation.observed).then_some(text)
}
