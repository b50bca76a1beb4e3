//! Looks up where in the program something was done.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::meter::recording::Site;

/// A place in the source of the program under test.
///
/// Code of dependencies, of the standard library and of this library is left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Place {
    /// The file; relative to the current directory where it is inside.
    pub file: String,
    /// The line: that of the `.await` in an async function.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What an instruction on the stack belongs to: with inlining, several functions, the innermost first.
#[derive(Debug)]
struct Symbol {
    name: String,
    file: Option<PathBuf>,
    line: u32,
}

type Symbols = Arc<[Symbol]>;

/// Looked up once for each instruction: it takes a while.
static KNOWN: LazyLock<Mutex<HashMap<usize, Symbols>>> = LazyLock::new(Mutex::default);

/// Where this is, the innermost place first, then where that was called from; up to the runtime or the
/// measurement, whatever is nearer.
pub(super) fn places(site: &Site) -> Vec<Place> {
    let symbols = site.0.iter().map(|ip| symbols(*ip)).collect::<Vec<_>>();
    let inside = symbols.iter().flat_map(|symbols| symbols.iter()).take_while(|s| !s.is_root());
    let mut places = inside.filter_map(Symbol::place).collect::<Vec<_>>();
    // An async function is polled through wrappers at the same line.
    places.dedup_by(|one, other| (&one.file, one.line) == (&other.file, other.line));
    places
}

/// Why no place is known, where that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// Nobody looked at the stack.
    Stack,
    /// Files and lines are known of no Rust code but the standard library.
    DebugInfo,
    /// All of it is of dependencies, as in a task that a driver has for itself.
    UserCode,
}

/// What is lacking where no place is known.
pub(super) fn lack(site: &Site) -> Lack {
    if site.0.is_empty() {
        Lack::Stack
    } else if site.0.iter().any(|ip| symbols(*ip).iter().any(Symbol::is_known)) {
        Lack::UserCode
    } else {
        Lack::DebugInfo
    }
}

/// Who asks for the current span.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asker {
    SqliteDriver,
    Other,
    /// The program is stripped of its symbols.
    Unknown,
}

/// Who asks for the current span here.
pub(super) fn asker(site: &Site) -> Asker {
    let known = site.0.iter().find_map(|ip| symbols(*ip).iter().find_map(Symbol::asker));
    // This very library is on the stack.
    let is_ours = |symbol: &Symbol| symbol.name.contains(env!("CARGO_CRATE_NAME"));
    match known {
        Some(Asker::SqliteDriver) => Asker::SqliteDriver,
        _ if !site.0.iter().any(|ip| symbols(*ip).iter().any(is_ours)) => Asker::Unknown,
        _ => Asker::Other,
    }
}

fn symbols(ip: usize) -> Symbols {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(symbols) = known().get(&ip) {
        return symbols.clone();
    }
    let mut symbols = Vec::new();
    // The stack holds where each call returns to, which may be the next line already.
    backtrace::resolve(ip.saturating_sub(1) as *mut c_void, |symbol| {
        symbols.push(Symbol {
            name: symbol.name().map_or_else(String::new, |name| format!("{name:#}")),
            file: symbol.filename().map(Path::to_owned),
            line: symbol.lineno().unwrap_or_default(),
        });
    });
    let symbols = Symbols::from(symbols);
    known().insert(ip, symbols.clone());
    symbols
}

impl Symbol {
    /// Whether its code is in one of these folders or, where that is not known, of one of these crates.
    fn is_in(&self, folders: &[&str], crates: &[&str]) -> bool {
        match &self.file {
            // The names of functions that were inlined lack their path.
            Some(file) => {
                let file = file.to_string_lossy().replace('\\', "/");
                folders.iter().any(|folder| file.contains(folder))
            }
            None => {
                let name = self.name.trim_start_matches(['<', '&']);
                crates.iter().any(|prefix| name.starts_with(prefix))
            }
        }
    }

    /// Whether there is debug info of the crate: the standard library comes with its own, and so may libc.
    fn is_known(&self) -> bool {
        let Some(file) = self.file.as_deref().filter(|_| self.line > 0) else { return false };
        file.extension().is_some_and(|extension| extension == "rs") && !is_of_std(file)
    }

    /// Who asks for the span; `None` for what lies between that and the look at the stack.
    fn asker(&self) -> Option<Asker> {
        const BETWEEN: [&str; 5] =
            ["backtrace::", "request_budget::", "tracing", "core::", "std::"];
        let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
        if self.is_in(&["/backtrace-", "/tracing-", "/rustc/", "/rustlib/", ours], &BETWEEN) {
            return None;
        }
        Some(match self.is_in(&["/sqlx-sqlite-"], &["sqlx_sqlite::"]) {
            true => Asker::SqliteDriver,
            false => Asker::Other,
        })
    }

    /// Outside of it nothing is part of the measured work: the measurement itself, and what polls tasks.
    fn is_root(&self) -> bool {
        let measure = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/measure.rs");
        let is_of_tokio = || self.is_in(&["/src/runtime/"], &[]) && self.is_in(&["/tokio-"], &[]);
        self.is_in(&[measure, "/library/test/"], &["tokio::runtime::", "test::"]) || is_of_tokio()
    }

    /// The place, if it is in the user's own code.
    fn place(&self) -> Option<Place> {
        let path = self.file.as_deref()?;
        let is_ours = path.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        // The compiler puts these where the global allocator is declared.
        let is_allocator = self.name.contains("__rust_") || self.name.contains("__rdl_");
        if is_ours || is_allocator || self.line == 0 || is_of_dependency(path) {
            return None;
        }
        Some(Place { file: short(path), line: self.line })
    }
}

/// Whether a file is of the standard library, or of a crate that cargo has fetched or vendored.
fn is_of_dependency(path: &Path) -> bool {
    static KNOWN: LazyLock<Mutex<HashMap<PathBuf, bool>>> = LazyLock::new(Mutex::default);
    let text = path.to_string_lossy();
    // Relative ones are those of libraries that are not Rust, or of code that was moved since.
    let is_moved = path.is_relative() && !path.exists();
    if is_moved || is_of_std(path) {
        return true;
    }
    let Some(folder) = path.parent() else { return false };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(folder.to_owned()).or_insert_with(|| {
        // Cargo leaves one of these in what it unpacks, checks out or vendors.
        let marks = [".cargo-ok", ".cargo-checksum.json"];
        folder.ancestors().any(|folder| marks.iter().any(|mark| folder.join(mark).exists()))
            || text.contains("/.cargo/registry/")
            || text.contains("/.cargo/git/")
    })
}

/// Whether a file is of the standard library, which always has debug info.
fn is_of_std(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("/rustc/") || text.contains("/rustlib/src/rust/")
}

/// The path as a person in the current directory would write it.
fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_symbols_nobody_can_tell_who_asks() {
        assert_eq!(asker(&Site::capture()), Asker::Other);
        assert_eq!(asker(&Site([1, 2, 3].into())), Asker::Unknown);
        assert_eq!(lack(&Site([1, 2, 3].into())), Lack::DebugInfo);
    }

    #[test]
    fn what_always_has_debug_info_shows_nothing() {
        let known = |file: Option<&str>, line| {
            Symbol { name: "f".to_owned(), file: file.map(PathBuf::from), line }.is_known()
        };
        assert!(known(Some("/root/.cargo/registry/src/index/tokio-1.54.1/src/task.rs"), 7));
        assert!(known(Some("src/lib.rs"), 7));
        assert!(!known(Some("src/lib.rs"), 0));
        assert!(!known(Some("/rustc/59807616e1/library/std/src/thread/local.rs"), 7));
        assert!(!known(Some("./nptl/pthread_create.c"), 442));
        assert!(!known(None, 0));
    }
}
