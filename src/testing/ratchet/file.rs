//! Reads and writes the committed file, and reads what the processes of a suite have recorded.

use std::path::Path;
use std::{fs, io};

use super::Suite;
use crate::report::suite::{END, Line};

const HEAD: &str =
    "# The most that each request and each job uses in the tests; written by request-budget.\n";

/// The contents of the file; empty if it does not exist yet.
pub(super) fn read(path: &Path) -> io::Result<Suite> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| named(path, &io::Error::other(error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Suite::new()),
        Err(error) => Err(named(path, &error)),
    }
}

pub(super) fn write(path: &Path, suite: &Suite) -> io::Result<()> {
    let text = toml::to_string(suite).map_err(io::Error::other)?;
    // The target of a symbolic link is replaced, not the link.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // Replacing the file would ignore that it is read-only.
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().readonly()) {
        return Err(named(path, &io::Error::new(io::ErrorKind::PermissionDenied, "is read-only")));
    }
    // Each process writes a temporary file and renames it, so that the file is never left half
    // written.
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = Path::new(&new);
    let written = fs::write(new, format!("{HEAD}\n{text}")).and_then(|()| fs::rename(new, path));
    written.map_err(|error| {
        // The temporary file may not exist, and then nothing has to be removed.
        drop(fs::remove_file(new));
        named(path, &error)
    })
}

/// The entries that a process has recorded, without a last one that is incomplete because it was
/// killed.
pub(super) fn entries(path: &Path) -> io::Result<Vec<Line>> {
    let bytes = fs::read(path).map_err(|error| named(path, &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut entries: Vec<_> = text.split(END).map(str::trim_start).collect();
    entries.pop();
    entries.into_iter().map(|entry| parse(entry).map_err(|error| named(path, &error))).collect()
}

fn parse(entry: &str) -> io::Result<Line> {
    #[derive(serde::Deserialize)]
    struct Whole {
        entry: Line,
    }

    let whole: Whole = toml::from_str(&format!("entry = {entry}")).map_err(io::Error::other)?;
    Ok(whole.entry)
}

/// Adds the path of the file to an error.
pub(super) fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
