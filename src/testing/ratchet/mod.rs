//! Lets nothing in a test suite use more than it did.

mod comparison;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

pub use comparison::Comparison;

use super::github;
use crate::report::suite::{FOLDER, Line, Noted};

/// Asks for the file to be written, not compared.
const UPDATE: &str = "REQUEST_BUDGET_RATCHET_UPDATE";

const NONE_METERED: &str = "no metered pool or client existed in any process of the suite";

/// What each unit of work of a suite uses, by name.
type Suite = BTreeMap<String, Noted>;

/// Compares what the requests and jobs of a whole test suite use with a committed file.
///
/// With the variable `REQUEST_BUDGET_RATCHET` set to a folder, every unit of work of every test, each request
/// that passes through a [`BudgetLayer`](crate::BudgetLayer) and each [`budgeted`](crate::BudgetExt::budgeted)
/// job, is noted there under its name. Afterwards [`check`](Self::check) fails where one needs more than the file
/// allows. The suite becomes a suite of query budgets, with no new test but this one:
///
/// ```no_run
/// #[test]
/// #[ignore = "for after the suite"]
/// fn ratchet() {
///     println!("{}", request_budget::testing::Ratchet::new("budgets.toml").check());
/// }
/// ```
///
/// ```sh
/// export REQUEST_BUDGET_RATCHET=$(mktemp -d)   # empty, or what was noted before counts as well; absolute
/// cargo test                                   # or cargo nextest run
/// cargo test --test ratchet -- --ignored
/// ```
///
/// With `REQUEST_BUDGET_RATCHET_UPDATE=1` the last command writes the file instead: for the first time, or when
/// more is needed, or less.
///
/// What no test runs any more stays in the file until you take it out.
///
/// Noted are queries, repeated queries, rows, transactions, external calls and unmetered statements. Not times,
/// and memory only [if asked for](Self::with_memory). Work whose budget is [exempt](crate::Budget::exempt) is compared as all other,
/// and listed with its reason. Unmetered statements are those that a [`SqlxEvents`](crate::db::SqlxEvents),
/// or a [measurement](super::measure), sees.
#[derive(Debug, Clone)]
pub struct Ratchet {
    file: PathBuf,
    folder: Option<PathBuf>,
    memory: Option<u64>,
}

impl Ratchet {
    /// A ratchet that is kept in this file, TOML, relative to the folder in which the test runs: that of
    /// the package.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), folder: None, memory: None }
    }

    /// Reads what was noted in this folder, whatever the environment says.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Compares peaks of memory as well, which may be so many percent higher.
    #[must_use]
    pub fn with_memory(mut self, percent: u64) -> Self {
        self.memory = Some(percent);
        self
    }

    /// Demands that nothing uses more than the file allows; prints as a table.
    ///
    /// What uses less, and what no test has run, is no failure and is listed.
    ///
    /// # Panics
    ///
    /// Panics, with the table, if something needs more than the file says or is not in the file; if nothing was
    /// noted, or nothing but zeros by processes without any metered pool or client; and if the file, or what was
    /// noted, cannot be read.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "it asserts")]
    pub fn check(&self) -> Comparison {
        let is_update = env::var_os(UPDATE).is_some_and(|value| !value.is_empty() && value != "0");
        let result = if is_update { self.update() } else { self.compare() };
        match result {
            Ok(comparison) if is_update || comparison.is_within() => comparison,
            Ok(comparison) => self.fail(&format!(
                "{comparison}\nfix what needs more, or allow it: run this test again with {UPDATE}=1"
            )),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        if github::is_here() {
            let title = why.lines().next().unwrap_or_default();
            println!("{}", github::error(&self.file.to_string_lossy(), 1, title, why));
        }
        panic!("{why}");
    }

    /// Compares what was noted with the file.
    ///
    /// # Errors
    ///
    /// Returns what went wrong in reading; also if nothing was noted.
    pub fn compare(&self) -> io::Result<Comparison> {
        let mut allowed = file::read(&self.file)?;
        let mut needed = self.noted()?;
        if self.memory.is_none() {
            let forget = |noted: &mut Noted| noted.memory = 0;
            allowed.values_mut().for_each(forget);
            needed.suite.values_mut().for_each(forget);
        }
        Ok(Comparison::new(&self.file, &allowed, &needed, self.memory.unwrap_or_default()))
    }

    /// Writes what was noted to the file. What no test has run stays there as it was.
    ///
    /// # Errors
    ///
    /// As [`compare`](Self::compare), and if the file cannot be written.
    pub fn update(&self) -> io::Result<Comparison> {
        let comparison = self.compare()?;
        let mut all = file::read(&self.file)?;
        for (name, mut noted) in self.noted()?.suite {
            if self.memory.is_none() {
                noted.memory = 0;
            }
            all.insert(name, noted);
        }
        file::write(&self.file, &all)?;
        Ok(comparison)
    }

    fn noted(&self) -> io::Result<Needed> {
        let folder = match (&self.folder, env::var_os(FOLDER)) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) if !folder.is_empty() => folder.into(),
            _ => {
                return Err(io::Error::other(format!(
                    "nothing was noted: {FOLDER} names no folder; set it for the whole suite"
                )));
            }
        };
        let mut needed = read_all(&folder)?;
        if needed.suite.is_empty() {
            return Err(io::Error::other(format!(
                "nothing was noted in {}: no test ran a request through a `BudgetLayer`, or a budgeted job, \
                 with {FOLDER} set",
                folder.display()
            )));
        }
        let is_nothing = |(what, n): (&str, &mut u64)| *n == 0 || what == "memory";
        let is_idle = needed.suite.values_mut().flat_map(Noted::numbers).all(is_nothing);
        if is_idle && !needed.is_metered && self.memory.is_none() {
            return Err(io::Error::other(format!("nothing was counted: {NONE_METERED}")));
        }
        Ok(needed)
    }
}

/// What all processes have noted.
struct Needed {
    /// The highest of each.
    suite: Suite,
    /// One of them had something that counts statements.
    is_metered: bool,
}

fn read_all(folder: &Path) -> io::Result<Needed> {
    let mut needed = Needed { suite: Suite::new(), is_metered: false };
    for entry in fs::read_dir(folder).map_err(|error| file::named(folder, &error))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "usage") {
            continue;
        }
        for Line { name, is_metered, noted } in file::entries(&path)? {
            needed.suite.entry(name).or_default().raise(noted);
            needed.is_metered |= is_metered;
        }
    }
    Ok(needed)
}
