//! The report that one limit was crossed.

use std::fmt::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::attributes::Attributes;
use crate::escape::{self, Escaped, Escaping};
use crate::resource::{Amount, Resource, Time};

/// The report that a unit of work crossed one limit: which, by how much, whose work, where, and
/// why.
///
/// Plain data, not an error: the work goes on after a soft one. It prints as one line that a person
/// can act on; there, and where it is serialised, names and texts are escaped as in
/// [events](crate::report::fields). Made at the moment of crossing, once per resource and unit of
/// work, so `observed` is what had been used by then and not yet what the work uses in the end.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::sync::{Arc, Mutex};
/// use request_budget::{Budget, BudgetExt, ExternalExt, Violation};
///
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let work = async { async {}.external("payments").await };
/// work.budgeted("send_invoices", Budget::new().external_calls(0))
///     .with_reporter({
///         let seen = seen.clone();
///         move |violation: &Violation| seen.lock().unwrap().push(violation.to_string())
///     })
///     .await
///     .unwrap()
///     .unwrap();
/// let expected = "send_invoices: 1 external call, limit 0: call to \"payments\"";
/// assert_eq!(*seen.lock().unwrap(), [expected]);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Violation {
    /// What was used too much.
    pub resource: Resource,
    /// Which kind of limit it was.
    pub severity: Severity,
    /// How much was allowed.
    pub limit: Amount,
    /// How much had been used.
    pub observed: Amount,
    /// The name of the unit of work, as it prints.
    #[serde(serialize_with = "escape::serialize")]
    pub work: String,
    /// What distinguishes this run from others of the same name; empty if nothing was given.
    pub attributes: Attributes,
    /// The name of the unit of work that created this one, if any did: for a task that a request
    /// has left running, the request.
    #[serde(serialize_with = "escape::serialize_option")]
    pub begun_by: Option<String>,
    /// The innermost `tracing` span at the crossing, if there was one.
    #[serde(serialize_with = "escape::serialize_option")]
    pub place: Option<String>,
    /// What used it, if that is known.
    pub cause: Option<Cause>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, limit, observed, .. } = self;
        let phrase = resource.phrase(observed.is_one());
        write!(f, "{}: {observed} {phrase}, limit {limit}", self.title())?;
        match (&self.cause, resource) {
            // The limit names what it was, and the number how long it took.
            (Some(Cause::OwnCode { .. }), Resource::PollTime) | (None, _) => Ok(()),
            (Some(Cause::Connection { pool: Some(pool), .. }), Resource::ConnectionWait) => {
                write!(f, ": pool {}", Escaped(pool))
            }
            (Some(cause), _) => write!(f, ": {cause}"),
        }
    }
}

impl Violation {
    /// The unit of work, for people.
    pub(crate) fn title(&self) -> impl fmt::Display {
        Title { work: &self.work, attributes: &self.attributes, begun_by: self.begun_by.as_ref() }
    }
}

/// A unit of work for people: "send_mail (job=7 attempt=2), begun by POST /orders".
pub(crate) struct Title<'a, W> {
    pub(crate) work: &'a W,
    pub(crate) attributes: &'a Attributes,
    pub(crate) begun_by: Option<&'a W>,
}

impl<W: fmt::Display> fmt::Display for Title<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.work)?;
        if !self.attributes.is_empty() {
            write!(f, " ({})", self.attributes)?;
        }
        match self.begun_by {
            Some(other) => write!(Escaping(f), ", begun by {other}"),
            None => Ok(()),
        }
    }
}

/// Which kind of limit was crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Severity {
    /// A soft one: the work continues.
    Soft,
    /// A hard one: the work is cut, unless it has just completed. If it is the limit of a single
    /// call to an external system, only that call is cut.
    Hard,
    /// A deadline set by the caller, if callers may set one and it was shorter than that of the
    /// budget: the work is cut, which is no fault of the service. See
    /// [`with_incoming_deadlines`](crate::BudgetLayer::with_incoming_deadlines).
    Caller,
}

impl Severity {
    /// The stable name, as in events: "soft", "hard" or "caller".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Caller => "caller",
        }
    }
}

/// What used a resource too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The statement that crossed the limit or, for a count, the one that ran most often; of calls
    /// to caches the kind of command.
    #[non_exhaustive]
    Statement {
        /// Its text, as the program gave it; values are in it only if the program put them there.
        #[serde(serialize_with = "escape::serialize_line")]
        text: String,
        /// How often the work had executed it.
        executions: u64,
        /// How long the work had waited for it, in all.
        #[serde(skip)]
        time: Duration,
        /// How long it had been waiting for an execution that was in flight at the crossing; set
        /// only where a time or memory was crossed.
        #[serde(skip)]
        waiting: Option<Duration>,
        /// How many bytes the work had allocated while it waited for it, in all, whether or not
        /// they were freed again; set only where memory was crossed.
        #[serde(skip)]
        allocated: Option<u64>,
    },
    /// The call to an external system that crossed the limit.
    #[non_exhaustive]
    External {
        /// The name given to [`external`](crate::ExternalExt::external).
        #[serde(serialize_with = "escape::serialize")]
        name: String,
        /// How often the work had called it.
        calls: u64,
        /// How long these calls had taken, in all.
        #[serde(skip)]
        time: Duration,
        /// How long one that was in flight at the crossing had taken; set only where a time or
        /// memory was crossed.
        #[serde(skip)]
        waiting: Option<Duration>,
        /// As of a statement.
        #[serde(skip)]
        allocated: Option<u64>,
    },
    /// Waits for connections of a pool took most of the time.
    #[non_exhaustive]
    Connection {
        /// The pool for which the work had waited longest at a time: the name that it was given, or
        /// where it connects to, as in `postgres://db.example.com:5432/shop`. `None` where that is
        /// not known.
        #[serde(serialize_with = "escape::serialize_option")]
        pool: Option<String>,
        /// How long the work had waited for connections, in all.
        #[serde(skip)]
        time: Duration,
        /// How long it had been waiting for one at the crossing.
        #[serde(skip)]
        waiting: Option<Duration>,
    },
    /// A `BEGIN`, `COMMIT`, `ROLLBACK` or savepoint that was in flight at the crossing took most of
    /// the time.
    #[non_exhaustive]
    Transaction {
        /// How long the work had been waiting for it.
        #[serde(skip)]
        waiting: Duration,
    },
    /// The client took most of the time to read the response: the body had returned a frame, and
    /// the server, or an outer layer, did not poll it for the next.
    #[non_exhaustive]
    SlowClient {
        /// How long it was not polled, in all.
        #[serde(skip)]
        time: Duration,
    },
    /// It was code of the work itself, or calls to external systems that are not marked by
    /// [`external`](crate::ExternalExt::external): nothing that is counted took a tenth of the
    /// time, or as much of the memory as the rest.
    #[non_exhaustive]
    OwnCode {
        /// The longest single poll; `None` without a limit on
        /// [`poll_time`](crate::Budget::poll_time), since polls are not timed then.
        #[serde(skip)]
        longest_poll: Option<Duration>,
        /// The most bytes that were allocated in a single poll; set only where memory was crossed.
        #[serde(skip)]
        allocated: Option<u64>,
    },
}

impl Cause {
    /// The stable name of what it is: "statement", "external", "connection", "transaction",
    /// "slow_client" or "own_code".
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Statement { .. } => "statement",
            Self::External { .. } => "external",
            Self::Connection { .. } => "connection",
            Self::Transaction { .. } => "transaction",
            Self::SlowClient { .. } => "slow_client",
            Self::OwnCode { .. } => "own_code",
        }
    }

    /// How long the work had been waiting for what was in flight when a limit on time or memory was
    /// crossed.
    #[must_use]
    pub const fn waiting(&self) -> Option<Duration> {
        match self {
            Self::Statement { waiting, .. }
            | Self::External { waiting, .. }
            | Self::Connection { waiting, .. } => *waiting,
            Self::Transaction { waiting } => Some(*waiting),
            Self::SlowClient { .. } | Self::OwnCode { .. } => None,
        }
    }

    /// How many bytes were allocated in it, where memory was crossed.
    #[must_use]
    pub const fn allocated(&self) -> Option<u64> {
        match self {
            Self::Statement { allocated, .. }
            | Self::External { allocated, .. }
            | Self::OwnCode { allocated, .. } => *allocated,
            Self::Connection { .. } | Self::Transaction { .. } | Self::SlowClient { .. } => None,
        }
    }

    /// The pool whose connections the work waited for, if that is known.
    #[must_use]
    pub fn pool(&self) -> Option<&str> {
        match self {
            Self::Connection { pool, .. } => pool.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Statement { text, executions, time, waiting, allocated } => {
                write!(f, "`{}`", Line(text))?;
                used(f, *executions, *time, *waiting, *allocated)
            }
            Self::External { name, calls, time, waiting, allocated } => {
                write!(f, "call to {name:?}")?;
                used(f, *calls, *time, *waiting, *allocated)
            }
            Self::Connection { pool, time, waiting } => {
                f.write_str("waiting for a connection")?;
                if let Some(pool) = pool {
                    write!(f, " of {}", Escaped(pool))?;
                }
                if let Some(waiting) = waiting {
                    write!(f, " for {}", Time(*waiting))?;
                }
                times(f, 1, *time, *waiting)
            }
            Self::Transaction { waiting } => {
                f.write_str("beginning or ending a transaction")?;
                in_flight(f, Some(*waiting))
            }
            Self::SlowClient { time } => {
                write!(f, "waiting for the client to read, {} in all", Time(*time))
            }
            Self::OwnCode { allocated: Some(most), .. } => {
                write!(f, "own code, up to {} in one poll", Amount::Bytes(*most))
            }
            Self::OwnCode { longest_poll: Some(poll), .. } => {
                write!(f, "own code, longest poll {}", Time(*poll))
            }
            Self::OwnCode { .. } => f.write_str("own code"),
        }
    }
}

fn used(
    f: &mut fmt::Formatter<'_>,
    count: u64,
    time: Duration,
    waiting: Option<Duration>,
    allocated: Option<u64>,
) -> fmt::Result {
    in_flight(f, waiting)?;
    match allocated {
        // The time does not explain the memory.
        Some(bytes) if count > 1 => {
            write!(f, ", {count} times, {} allocated in all", Amount::Bytes(bytes))
        }
        Some(bytes) => write!(f, ", {} allocated", Amount::Bytes(bytes)),
        None => times(f, count, time, waiting),
    }
}

fn in_flight(f: &mut fmt::Formatter<'_>, waiting: Option<Duration>) -> fmt::Result {
    match waiting {
        Some(waiting) => write!(f, ", in flight for {}", Time(waiting)),
        None => Ok(()),
    }
}

fn times(
    f: &mut fmt::Formatter<'_>,
    count: u64,
    time: Duration,
    waiting: Option<Duration>,
) -> fmt::Result {
    if count > 1 {
        write!(f, ", {count} times")?;
    }
    // For a single one that is in flight it would repeat the same time.
    if time > waiting.unwrap_or_default() {
        write!(f, ", {} in all", Time(time))?;
    }
    Ok(())
}

/// A statement on one line, its white space folded and the rest escaped, at most so many
/// characters.
pub(crate) struct Line<'a>(pub(crate) &'a str);

impl Line<'_> {
    const LONGEST: usize = 160;
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = Self::LONGEST;
        for (position, word) in self.0.split_whitespace().enumerate() {
            if position > 0 {
                f.write_str(" ")?;
            }
            if let Some((cut, _)) = word.char_indices().nth(left) {
                return write!(f, "{}…", Escaped(&word[..cut]));
            }
            Escaped(word).fmt(f)?;
            left = left.saturating_sub(word.chars().count().saturating_add(1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(resource: Resource, observed: u64, limit: u64) -> Violation {
        Violation {
            resource,
            severity: Severity::Soft,
            limit: resource.amount(limit),
            observed: resource.amount(observed),
            work: "GET /posts/{id}".into(),
            attributes: Attributes::new(),
            begun_by: None,
            place: None,
            cause: None,
        }
    }

    #[test]
    fn it_prints_as_one_line() {
        let mut violation = violation(Resource::Queries, 21, 20);
        assert_eq!(violation.to_string(), "GET /posts/{id}: 21 queries, limit 20");
        violation.cause = Some(Cause::Statement {
            text: "SELECT name\n  FROM authors".into(),
            executions: 20,
            time: Duration::from_millis(3),
            waiting: None,
            allocated: None,
        });
        assert_eq!(
            violation.to_string(),
            "GET /posts/{id}: 21 queries, limit 20: `SELECT name FROM authors`, 20 times, 3ms in all"
        );
    }

    #[test]
    fn it_says_which_run_it_was_and_who_began_it() {
        let mut violation = violation(Resource::Queries, 21, 20);
        violation.begun_by = Some("POST /orders".into());
        violation.attributes = Attributes::new().with("job", 7).with("attempt", 2);
        assert_eq!(
            violation.to_string(),
            "GET /posts/{id} (job=7 attempt=2), begun by POST /orders: 21 queries, limit 20"
        );
    }

    #[test]
    fn no_text_of_others_breaks_the_line() {
        let mut violation = violation(Resource::Queries, 2, 1);
        violation.work = "job\nERROR app: admin logged in".into();
        violation.begun_by = Some("GET /\u{2028}".into());
        violation.attributes = Attributes::new().with("a\rb", "c");
        let (text, executions, time) = ("SELECT '\u{1b}[31m\u{202e}'".into(), 2, Duration::ZERO);
        let allocated = None;
        violation.cause =
            Some(Cause::Statement { text, executions, time, waiting: None, allocated });
        let printed = r#"job\nERROR app: admin logged in ("a\rb"=c), begun by GET /\u{2028}: "#
            .to_owned()
            + r"2 queries, limit 1: `SELECT '\u{1b}[31m\u{202e}'`, 2 times";
        assert_eq!(violation.to_string(), printed);
        let cut = crate::error::Cut::new(violation.clone()).to_string();
        assert!(!cut.contains(escape::is_hazard), "{cut}");
        let name = "mail\n\u{202e}".into();
        violation.cause = Some(Cause::External { name, calls: 2, time, waiting: None, allocated });
        assert!(violation.to_string().ends_with(r#": call to "mail\n\u{202e}", 2 times"#));
    }

    #[test]
    fn units_are_printed() {
        assert_eq!(
            violation(Resource::Memory, 34 << 20, 8 << 20).to_string(),
            "GET /posts/{id}: 34.0 MiB of memory at peak, limit 8.0 MiB"
        );
        assert_eq!(
            violation(Resource::SlowQuery, 80_100_000, 50_000_000).to_string(),
            "GET /posts/{id}: 80.1ms in one statement, limit 50ms"
        );
    }

    #[test]
    fn a_long_statement_is_cut_between_characters() {
        let line = Line(&"ü".repeat(1_000)).to_string();
        assert_eq!(line, format!("{}…", "ü".repeat(160)));
    }
}
