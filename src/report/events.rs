//! Violations and usage as `tracing` events.

use std::time::{Duration, SystemTime};

use tracing::{Level, event};

use super::fields::*;
use super::{Name, Outcome, Report};
use crate::escape::{escaped, one_line};
use crate::meter::Meter;
use crate::violation::{Cause, Severity, Title, Violation};

/// The level of an event is part of its static description, hence one expansion a level.
macro_rules! violation_event {
    ($level:expr, $violation:expr, $left_out:expr) => {{
        let Violation { resource, severity, limit, observed, work, attributes, begun_by, place, cause } =
            $violation;
        let (statement, external, times) = match cause {
            Some(Cause::Statement { text, executions, .. }) => {
                (Some(one_line(text)), None, Some(*executions))
            }
            Some(Cause::External { name, calls, .. }) => (None, Some(escaped(name)), Some(*calls)),
            Some(_) | None => (None, None, None),
        };
        event!(
            target: VIOLATION,
            $level,
            { RESOURCE } = resource.name(),
            { SEVERITY } = severity.name(),
            { LIMIT } = limit.as_event_value(),
            { OBSERVED } = observed.as_event_value(),
            { UNIT } = resource.unit().name(),
            { WORK } = &*escaped(work),
            { ATTRIBUTES } = (!attributes.is_empty()).then(|| display(attributes)),
            { BEGUN_BY } = begun_by.as_deref().map(escaped).as_deref(),
            { PLACE } = place.as_deref().map(escaped).as_deref(),
            { STATEMENT } = statement.as_deref(),
            { EXTERNAL } = external.as_deref(),
            { TIMES } = times,
            { CAUSE } = cause.as_ref().filter(|_| times.is_none()).map(Cause::name),
            { POOL } = cause.as_ref().and_then(Cause::pool).map(escaped).as_deref(),
            { ALLOCATED } = cause.as_ref().and_then(Cause::allocated),
            { WAITING } = cause.as_ref().and_then(Cause::waiting).map(micros),
            { LEFT_OUT } = ($left_out > 0).then_some($left_out),
            "{}",
            $violation
        )
    }};
}

pub(super) fn violation(meter: &Meter, violation: &Violation, left_out: u64) {
    inside_span(meter, || match violation.severity {
        Severity::Soft => violation_event!(Level::WARN, violation, left_out),
        Severity::Hard => violation_event!(Level::ERROR, violation, left_out),
        Severity::Caller => violation_event!(Level::DEBUG, violation, left_out),
    });
}

pub(super) fn usage(meter: &Meter, outcome: Outcome) {
    // Checked first: to compute the usage costs more than everything else that is done for the
    // account of a request.
    if !tracing::enabled!(target: USAGE, Level::DEBUG) {
        return;
    }
    let report = Report::new(meter, outcome);
    let usage = report.usage();
    inside_span(meter, || {
        event!(
            target: USAGE,
            Level::DEBUG,
            { WORK } = %report.work(),
            { ATTRIBUTES } = (!report.attributes().is_empty()).then(|| display(report.attributes())),
            { BEGUN_BY } = report.begun_by().map(display),
            { START } = unix_micros(report.started()),
            { OUTCOME } = outcome.name(),
            { VIOLATIONS } = report.violations(),
            { QUERIES } = usage.queries,
            { REPEATED_QUERIES } = usage.repeated_queries,
            { WRITES } = usage.writes,
            { OBSERVED_QUERIES } = usage.observed,
            { ROWS } = usage.rows,
            { TRANSACTIONS } = usage.transactions,
            { QUERY_TIME } = micros(usage.query_time),
            { SLOW_QUERY } = micros(usage.slow_query),
            { CONNECTION_WAIT } = micros(usage.connection_wait),
            { UNMETERED } = usage.unmetered,
            { CACHE_CALLS } = usage.cache_calls,
            { REPEATED_CACHE_CALLS } = usage.repeated_cache_calls,
            { CACHE_TIME } = micros(usage.cache_time),
            { MEMORY } = usage.memory,
            { ALLOCATED } = usage.allocated,
            { RETAINED } = usage.retained,
            { EXTERNAL_CALLS } = usage.external_calls,
            { EXTERNAL_TIME } = micros(usage.external_time),
            { TOTAL_TIME } = micros(usage.total_time),
            { QUEUE_TIME } = usage.queue_time.map(micros),
            { POLL_TIME } = usage.poll_time.map(micros),
            { BUSY_TIME } = usage.busy_time.map(micros),
            { RESPONSE_BYTES } = usage.response_bytes,
            "{}: {}",
            title(&report),
            usage
        );
    });
}

/// Runs inside the span in which the work began: a server drops a body outside every span, or
/// inside one of the connection.
///
/// Where that span is entered already, deeper ones stay the current ones: a registry takes no
/// notice of a span that is entered twice.
fn inside_span(meter: &Meter, event: impl FnOnce()) {
    meter.span().in_scope(event);
}

fn title<'a>(report: &Report<'a>) -> Title<'a, Name> {
    Title { work: report.work(), attributes: report.attributes(), begun_by: report.begun_by() }
}

fn unix_micros(time: SystemTime) -> u64 {
    // A clock that is set to before 1970 shows its beginning.
    micros(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
