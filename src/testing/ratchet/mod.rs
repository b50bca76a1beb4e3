//! Fails a test suite when a unit of work uses more than a committed file allows.

mod comparison;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

pub use comparison::Comparison;

use super::github;
use crate::report::suite::{FOLDER, Line, Noted};

/// The variable that makes `check` write the file instead of comparing it.
const UPDATE: &str = "REQUEST_BUDGET_RATCHET_UPDATE";

const NONE_METERED: &str = "no metered pool or client existed in any process of the suite";

/// What each unit of work of a suite uses, by name.
type Suite = BTreeMap<String, Noted>;

/// Compares what the requests and jobs of a whole test suite use with a committed file.
///
/// If the variable `REQUEST_BUDGET_RATCHET` is set to a folder, every unit of work of every test,
/// that is each request that passes through a [`BudgetLayer`](crate::BudgetLayer) and each
/// [`budgeted`](crate::BudgetExt::budgeted) job, is recorded there under its name. Afterwards
/// [`check`](Self::check) fails if one uses more than the file allows. So the suite becomes a suite
/// of query budgets, with a single new test:
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
/// # Absolute, and empty, or what was noted before counts as well.
/// export REQUEST_BUDGET_RATCHET=$(mktemp -d)
/// cargo test  # or cargo nextest run
/// cargo test --test ratchet -- --ignored
/// ```
///
/// With `REQUEST_BUDGET_RATCHET_UPDATE=1` the last command writes the file instead: the first time,
/// and whenever the numbers are meant to change.
///
/// A name that no test runs any more stays in the file until you remove it.
///
/// Recorded are queries, repeated queries, rows, transactions, calls to caches and repeated ones,
/// external calls and unmetered statements; memory only [on request](Self::with_memory), and no
/// times. Work whose budget is [exempt](crate::Budget::exempt) is compared like all other work, and
/// listed with its reason. Unmetered statements are those that a
/// [`SqlxEvents`](crate::db::SqlxEvents) or a [measurement](super::measure) receives.
#[derive(Debug, Clone)]
pub struct Ratchet {
    file: PathBuf,
    folder: Option<PathBuf>,
    memory: Option<u64>,
}

impl Ratchet {
    /// Creates a ratchet that is kept in this TOML file, relative to the folder in which the test
    /// runs, which is that of the package.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), folder: None, memory: None }
    }

    /// Reads what was recorded from this folder instead of the one that the variable names.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Compares peaks of memory as well, which may be this many percent higher.
    #[must_use]
    pub fn with_memory(mut self, percent: u64) -> Self {
        self.memory = Some(percent);
        self
    }

    /// Asserts that nothing uses more than the file allows; returns the comparison, whose `Display`
    /// is a table.
    ///
    /// What uses less, and what no test has run, is listed and is no failure.
    ///
    /// # Panics
    ///
    /// Panics, with the table, if something uses more than the file allows or is not in the file;
    /// if nothing was recorded, or only zeros by processes without any metered pool or client; and
    /// if the file, or what was recorded, cannot be read.
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

    /// Compares what was recorded with the file.
    ///
    /// # Errors
    ///
    /// Returns an error if something cannot be read, or if nothing was recorded.
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

    /// Writes what was recorded to the file. Names that no test has run stay there unchanged.
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
                "nothing was noted in {}: no test ran a request through a `BudgetLayer`, or a \
                 budgeted job, with {FOLDER} set",
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

/// What all processes have recorded.
struct Needed {
    /// The highest value of each number.
    suite: Suite,
    /// Whether one of them had a metered pool or client.
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
