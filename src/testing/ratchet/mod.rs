//! Lets nothing in a test suite use more than it did.

mod comparison;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

pub use comparison::Comparison;

use crate::report::suite::{FOLDER, Line, Noted};

/// Asks for the file to be written, not compared.
const UPDATE: &str = "REQUEST_BUDGET_RATCHET_UPDATE";

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
/// export REQUEST_BUDGET_RATCHET=$(mktemp -d)   # empty, or what was noted before counts as well
/// cargo test                                   # or cargo nextest run
/// cargo test --test ratchet -- --ignored
/// ```
///
/// With `REQUEST_BUDGET_RATCHET_UPDATE=1` the last command writes the file instead: for the first time, or when
/// more is needed, or less.
///
/// Noted are queries, repeated queries, rows, transactions, external calls and unmetered statements. Not times,
/// and memory only [if asked for](Self::with_memory). Work whose budget is [exempt](crate::Budget::exempt) is compared as all other,
/// and listed with its reason.
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
    /// noted; and if the file, or what was noted, cannot be read.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "it asserts")]
    pub fn check(&self) -> Comparison {
        let is_update = env::var_os(UPDATE).is_some_and(|value| !value.is_empty() && value != "0");
        let result = if is_update { self.update() } else { self.compare() };
        match result {
            Ok(comparison) if is_update || comparison.is_within() => comparison,
            Ok(comparison) => panic!(
                "{comparison}\nfix what needs more, or allow it: run this test again with {UPDATE}=1"
            ),
            Err(error) => panic!("{error}"),
        }
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
            needed.values_mut().for_each(forget);
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
        for (name, mut noted) in self.noted()? {
            if self.memory.is_none() {
                noted.memory = 0;
            }
            all.insert(name, noted);
        }
        file::write(&self.file, &all)?;
        Ok(comparison)
    }

    fn noted(&self) -> io::Result<Suite> {
        let folder = match (&self.folder, env::var_os(FOLDER)) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) if !folder.is_empty() => folder.into(),
            _ => {
                return Err(io::Error::other(format!(
                    "nothing was noted: {FOLDER} names no folder; set it for the whole suite"
                )));
            }
        };
        let suite = read_all(&folder)?;
        if suite.is_empty() {
            return Err(io::Error::other(format!(
                "nothing was noted in {}: no test ran a request through a `BudgetLayer`, or a budgeted job, \
                 with {FOLDER} set",
                folder.display()
            )));
        }
        Ok(suite)
    }
}

/// The highest of what all processes have noted.
fn read_all(folder: &Path) -> io::Result<Suite> {
    let mut suite = Suite::new();
    for entry in fs::read_dir(folder).map_err(|error| file::named(folder, &error))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "usage") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // A process that was killed may have left half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let Line { name, noted } =
                file::parse_line(line).map_err(|e| file::named(&path, &e))?;
            suite.entry(name).or_default().raise(noted);
        }
    }
    Ok(suite)
}
