//! Records what the units of work of a test suite use, for the ratchet of `testing`.
//!
//! It is off unless an environment variable names a folder. Each process appends to a file of its
//! own, and adds an entry only when a name uses more than before, because tests run in many
//! processes at once and may crash.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::escape::escaped;
use crate::memory::{self, Delta};
use crate::meter::Meter;
use crate::report::unmeasured;
use crate::usage::Usage;

/// The environment variable that names the folder.
pub(crate) const FOLDER: &str = "REQUEST_BUDGET_RATCHET";

/// The numbers that are recorded of a unit of work: those that do not vary from run to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Noted {
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) queries: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) repeated_queries: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) rows: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) transactions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) cache_calls: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) repeated_cache_calls: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) external_calls: u64,
    /// Statements that passed through no metered connection.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) unmetered: u64,
    /// The peak of live bytes; 0 if it is not measured or not asked for.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) memory: u64,
    /// Why its budget is exempt from the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exempt: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How often something was repeated; once is not.
fn repeated(times: u64) -> u64 {
    if times > 1 { times } else { 0 }
}

impl Noted {
    fn of(usage: &Usage, exempt: Option<&str>) -> Self {
        Self {
            queries: usage.queries,
            repeated_queries: repeated(usage.repeated_queries),
            rows: usage.rows,
            transactions: usage.transactions,
            cache_calls: usage.cache_calls,
            repeated_cache_calls: repeated(usage.repeated_cache_calls),
            external_calls: usage.external_calls,
            unmetered: usage.unmetered,
            memory: usage.memory.unwrap_or_default(),
            exempt: exempt.map(|reason| escaped(reason).into_owned()),
        }
    }

    /// The numbers, by name.
    pub(crate) fn numbers(&mut self) -> [(&'static str, &mut u64); 9] {
        [
            ("queries", &mut self.queries),
            ("repeated_queries", &mut self.repeated_queries),
            ("rows", &mut self.rows),
            ("transactions", &mut self.transactions),
            ("cache_calls", &mut self.cache_calls),
            ("repeated_cache_calls", &mut self.repeated_cache_calls),
            ("external_calls", &mut self.external_calls),
            ("unmetered", &mut self.unmetered),
            ("memory", &mut self.memory),
        ]
    }

    /// Raises each number to that of the other where that is higher; returns whether any was.
    pub(crate) fn raise(&mut self, mut other: Self) -> bool {
        // Of several reasons the first is kept.
        let is_other = |own: &String| other.exempt.as_ref().is_some_and(|other| other < own);
        let mut is_news = match &self.exempt {
            Some(own) => is_other(own),
            None => other.exempt.is_some(),
        };
        if is_news {
            self.exempt = other.exempt.take();
        }
        for ((_, own), (_, other)) in self.numbers().into_iter().zip(other.numbers()) {
            is_news |= *other > *own;
            *own = (*own).max(*other);
        }
        is_news
    }
}

/// One entry of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Whether the process has a metered pool or client.
    pub(crate) is_metered: bool,
    pub(crate) noted: Noted,
}

/// Ends each entry; it occurs neither in the TOML that is written nor in an escaped name.
pub(crate) const END: char = '\u{1e}';

struct Notes {
    file: File,
    highest: HashMap<String, Noted>,
    is_metered: bool,
}

static NOTES: LazyLock<Option<Mutex<Notes>>> = LazyLock::new(|| {
    let folder = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty())?;
    match create(&folder) {
        Ok(file) => Some(Mutex::new(Notes { file, highest: HashMap::new(), is_metered: false })),
        Err(error) => {
            say(&error);
            None
        }
    }
});

/// Records the usage of a unit of work that has ended.
pub(super) fn note(meter: &Meter) {
    let Some(notes) = &*NOTES else { return };
    memory::aside(|| {
        let noted = Noted::of(&meter.usage(Delta::default()), meter.limits().exemption());
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = notes.note(meter.name().to_string(), noted) {
            say(&error);
        }
    });
}

impl Notes {
    fn note(&mut self, name: String, noted: Noted) -> io::Result<()> {
        let is_metered = unmeasured::is_metered();
        let is_new = !self.highest.contains_key(&name) || self.is_metered != is_metered;
        let highest = self.highest.entry(name.clone()).or_default();
        if !highest.raise(noted) && !is_new {
            return Ok(());
        }
        self.is_metered = is_metered;
        let line = Line { name, is_metered, noted: highest.clone() };
        let line = toml::Value::try_from(line).map_err(io::Error::other)?;
        // A single write, so that an entry is either complete or lacks its end.
        self.file.write_all(format!("{line}{END}\n").as_bytes())
    }
}

/// Opens a file to which no other process writes.
fn create(folder: &OsString) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("{}-{}.usage", std::process::id(), now.as_nanos());
    OpenOptions::new().append(true).create_new(true).open(Path::new(folder).join(name))
}

fn say(error: &io::Error) {
    eprintln!("request-budget: usage is not noted in the folder of {FOLDER}: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_noted_on_one_line() {
        let noted = Noted::of(&Usage::default(), Some("issue\n7"));
        assert_eq!(noted.exempt.as_deref(), Some(r"issue\n7"));
    }
}
