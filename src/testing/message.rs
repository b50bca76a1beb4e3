//! The message of a failed assertion: what was exceeded, what the work did, from where, and what to
//! do.

use std::fmt::{self, Write};
use std::io::{IsTerminal, stderr, stdout};
use std::panic::Location;

use bytesize::ByteSize;

use super::advice;
use super::doubts;
use super::github;
use super::record::{Account, CallSite, ExternalCall, Statement};
use super::site::{Lack, Place};
use crate::escape::{Escaped, escaped};
use crate::resource::{Resource, Time};

/// Why statements past the metered pools are not all seen, and what to do about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unseen {
    pub(super) why: &'static str,
    pub(super) remedy: &'static str,
}

pub(super) const NO_EVENTS: Unseen = Unseen {
    why: "statements past the metered pools cannot be seen: the events of sqlx are compiled out by \
          a `max_level` feature of `tracing`",
    remedy: advice::METER,
};

pub(super) const NO_LOGGING: Unseen = Unseen {
    why: "a connection that is not metered was used, of whose statements sqlx makes no event: \
          their logging is switched off (`log_statements`, `disable_statement_logging`)",
    remedy: advice::METER,
};

pub(super) const MASKED: Unseen = Unseen {
    why: "the work puts a default subscriber of its own in the place of that of the measurement, \
          which then does not see statements past the metered pools",
    remedy: "put it around the measurement, `measure(work).with_subscriber(..)`, not inside",
};

/// Placeholder for a statement whose text is not known, only that its driver has executed it.
pub(super) const UNLOGGED: &str =
    "(a statement that sqlx makes no event of: its logging is switched off, or it is not valid)";

/// What an assertion found.
#[derive(Debug, Default)]
pub(super) struct Failure {
    findings: Vec<String>,
    advice: Vec<String>,
}

impl Failure {
    pub(super) fn push(&mut self, finding: String, advice: Vec<String>) {
        self.findings.push(finding);
        for line in advice {
            if !self.advice.contains(&line) {
                self.advice.push(line);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn extend(&mut self, found: Option<(String, Vec<String>)>) {
        if let Some((finding, advice)) = found {
            self.push(finding, advice);
        }
    }

    #[track_caller]
    pub(super) fn panic_unless_empty(&self, account: &Account, what: &str, caller: &Location<'_>) {
        if self.findings.is_empty() {
            doubts::warn(account, caller);
            return;
        }
        if github::is_here() {
            let place = worst(account).and_then(|statement| {
                statement.sites().into_iter().flat_map(|site| site.places).next()
            });
            let (file, line) = match &place {
                Some(place) => (&*place.file, place.line),
                None => (caller.file(), caller.line()),
            };
            let text = self.text(account, what, Style::PLAIN);
            println!("{}", github::error(file, line, &self.findings[0], &text));
        }
        panic!("{}", self.text(account, what, Style::detect()));
    }

    pub(super) fn text(&self, account: &Account, what: &str, style: Style) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            line(&mut text, format_args!("{}", style.bad(finding)));
        }
        line(&mut text, format_args!("\n{}", style.head(what)));
        print(&mut text, account, style);
        if !self.advice.is_empty() {
            line(&mut text, format_args!("\n{}", style.head("advice")));
            for advice in &self.advice {
                line(&mut text, format_args!("  * {advice}"));
            }
        }
        text
    }
}

/// The statement that most probably is to blame.
fn worst(account: &Account) -> Option<&Statement> {
    account.all_statements().max_by_key(|statement| (statement.executions, statement.rows))
}

fn print(text: &mut String, account: &Account, style: Style) {
    let usage = &account.usage;
    let sum = Summary(vec![
        counted(Resource::Queries, usage.queries),
        counted(Resource::Rows, usage.rows),
        timed("", usage.query_time),
        timed("waiting for connections ", usage.connection_wait),
    ]);
    line(text, format_args!("{}{sum}", style.head("statements: ")));
    statements(text, &account.statements, style);
    if !account.unmetered.is_empty() || usage.unmetered > 0 {
        let head = style.bad("unmetered statements: ");
        line(text, format_args!("{head}{}, in no count", usage.unmetered));
        statements(text, &account.unmetered, style);
    }
    if !account.elsewhere.is_empty() {
        let head = style.bad("statements of other work meanwhile: ");
        line(text, format_args!("{head}{}, in no count", account.elsewhere()));
        statements(text, &account.elsewhere, style);
    }
    if usage.transactions > 0 {
        let head = style.head("transactions: ");
        line(text, format_args!("{head}{}", usage.transactions));
        for begin in &account.transactions {
            sites(text, &begin.sites(), style);
        }
    }
    if usage.cache_calls > 0 {
        let sum = Summary(vec![Some(usage.cache_calls.to_string()), timed("", usage.cache_time)]);
        line(text, format_args!("{}{sum}", style.head("cache calls: ")));
        statements(text, &account.cache_calls, style);
    }
    if usage.external_calls > 0 {
        let sum =
            Summary(vec![Some(usage.external_calls.to_string()), timed("", usage.external_time)]);
        line(text, format_args!("{}{sum}", style.head("external calls: ")));
        let mut calls: Vec<&ExternalCall> = account.external_calls.iter().collect();
        calls.sort_by_key(|call| std::cmp::Reverse(call.calls));
        for call in calls {
            let sum = Summary(vec![timed("", call.time), longest(call.calls, call.longest)]);
            line(text, format_args!("  {:>4}x {}", call.calls, style.head(&escaped(&call.name))));
            sum.indented(text);
            sites(text, &call.sites(), style);
        }
    }
    match usage.memory {
        Some(peak) => {
            let sum = Summary(vec![
                Some(format!("{} at peak", ByteSize::b(peak))),
                usage.retained.map(|bytes| format!("{} retained", ByteSize::b(bytes))),
                usage.allocated.map(|bytes| format!("{} allocated", ByteSize::b(bytes))),
            ]);
            line(text, format_args!("{}{sum}", style.head("memory: ")));
            if let Some(place) = account.peak() {
                line(text, format_args!("       {}", At(&place, style)));
            }
        }
        None => line(text, format_args!("{}not measured", style.head("memory: "))),
    }
    line(text, format_args!("{}{}", style.head("total: "), Time(usage.total_time)));
    if let n @ 1.. = account.sight.carried {
        line(text, format_args!("{}", style.bad(&format!("{} had not ended by then", carried(n)))));
    }
    if let Some(n) = account.sight.served.map(|served| served.unfinished).filter(|n| *n > 0) {
        let requests = if n == 1 { "request" } else { "requests" };
        line(text, format_args!("{}", style.bad(&format!("{n} {requests} had not ended by then"))));
    }
}

fn statements(text: &mut String, all: &[Statement], style: Style) {
    let mut all: Vec<&Statement> = all.iter().collect();
    all.sort_by_key(|statement| std::cmp::Reverse(statement.executions));
    for statement in all {
        let Statement { executions, repetitions, rows, time, .. } = *statement;
        let mark = if repetitions > 1 { style.warn("  <- repeated") } else { String::new() };
        line(text, format_args!("  {executions:>4}x {}{mark}", Escaped(&statement.text)));
        Summary(vec![
            (rows > 0).then(|| counted(Resource::Rows, rows)).flatten(),
            timed("", time),
            longest(executions, statement.longest),
        ])
        .indented(text);
        sites(text, &statement.sites(), style);
    }
}

fn sites(text: &mut String, sites: &[CallSite], style: Style) {
    let several = sites.len() > 1;
    for site in sites {
        let Some((first, callers)) = site.places.split_first() else {
            line(text, format_args!("       {}", style.faint(unplaced(site.lack))));
            continue;
        };
        let times = if several { format!(" ({}x)", site.times) } else { String::new() };
        line(text, format_args!("       {}{times}", At(first, style)));
        for caller in callers {
            line(text, format_args!("         {}", style.faint(&format!("called from {caller}"))));
        }
    }
}

pub(super) fn carried(n: usize) -> String {
    format!(
        "{n} {} along",
        if n == 1 { "task that was carried" } else { "tasks that were carried" }
    )
}

fn unplaced(lack: Option<Lack>) -> &'static str {
    match lack {
        Some(Lack::DebugInfo) => {
            "(place unknown: no debug info; set `debug = \"line-tables-only\"` and `strip = false` in the profile)"
        }
        Some(Lack::UserCode) => "(place unknown: only code of dependencies led here)",
        Some(Lack::Stack) | None => "(place unknown)",
    }
}

/// A line of its own.
fn line(text: &mut String, line: fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn counted(resource: Resource, n: u64) -> Option<String> {
    Some(format!("{n} {}", resource.phrase(n == 1)))
}

fn timed(what: &str, time: std::time::Duration) -> Option<String> {
    (!time.is_zero()).then(|| format!("{what}{}", Time(time)))
}

fn longest(times: u64, longest: std::time::Duration) -> Option<String> {
    (times > 1).then(|| timed("longest ", longest)).flatten()
}

/// What is known, separated by commas.
struct Summary(Vec<Option<String>>);

impl Summary {
    fn indented(&self, text: &mut String) {
        if self.0.iter().any(Option::is_some) {
            line(text, format_args!("       {self}"));
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<_> = self.0.iter().flatten().map(String::as_str).collect();
        f.write_str(&known.join(", "))
    }
}

struct At<'a>(&'a Place, Style);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}", self.1.place(&self.0.to_string()))
    }
}

/// Colour, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    is_coloured: bool,
}

impl Style {
    pub(super) const PLAIN: Self = Self { is_coloured: false };

    /// Colours if standard output is a terminal and the user has not disabled them. The test
    /// harness prints the message of a failing test to standard output.
    pub(super) fn detect() -> Self {
        let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_coloured: stderr().is_terminal() && stdout().is_terminal() && !is_refused }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self.is_coloured {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn head(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn place(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_around_the_words_and_only_where_it_is_wanted() {
        let coloured = Style { is_coloured: true };
        assert_eq!(coloured.bad("21 queries"), "\u{1b}[1;31m21 queries\u{1b}[0m");
        let all = [Style::bad, Style::head, Style::warn, Style::place, Style::faint];
        assert!(all.iter().all(|paint| paint(Style::PLAIN, "word") == "word"));
        assert!(all.iter().all(|paint| paint(coloured, "word").contains("mword\u{1b}[0m")));
    }
}
