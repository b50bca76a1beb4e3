//! The committed file, and the lines of what was noted.

use std::path::Path;
use std::{fs, io};

use super::Suite;
use crate::report::suite::Line;

const HEAD: &str =
    "# The most that each request and each job uses in the tests; written by request-budget.\n";

/// What the file says; nothing if there is none yet.
pub(super) fn read(path: &Path) -> io::Result<Suite> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| named(path, &io::Error::other(error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Suite::new()),
        Err(error) => Err(named(path, &error)),
    }
}

pub(super) fn write(path: &Path, suite: &Suite) -> io::Result<()> {
    let text = toml::to_string(suite).map_err(io::Error::other)?;
    // Whole or not at all: the old file is worth more than half of a new one.
    let new = path.with_extension("new");
    fs::write(&new, format!("{HEAD}\n{text}")).map_err(|error| named(&new, &error))?;
    fs::rename(&new, path).map_err(|error| named(path, &error))
}

pub(super) fn parse_line(line: &str) -> io::Result<Line> {
    #[derive(serde::Deserialize)]
    struct Whole {
        line: Line,
    }

    let whole: Whole = toml::from_str(&format!("line = {line}")).map_err(io::Error::other)?;
    Ok(whole.line)
}

/// Says of which file an error is.
pub(super) fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
