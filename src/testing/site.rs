//! Looks up the place in the program from which something was done.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::escape::Escaped;
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
        write!(f, "{}:{}", Escaped(&self.file), self.line)
    }
}

/// One function to which an instruction on the stack belongs; inlining makes it several, the
/// innermost first.
#[derive(Debug)]
struct Symbol {
    name: String,
    file: Option<PathBuf>,
    line: u32,
}

type Symbols = Arc<[Symbol]>;

/// The symbols of each instruction, cached because resolving them is slow.
static KNOWN: LazyLock<Mutex<HashMap<usize, Symbols>>> = LazyLock::new(Mutex::default);

/// The places of a captured stack, the innermost first, up to the runtime or the measurement,
/// whichever is nearer.
pub(super) fn places(site: &Site) -> Vec<Place> {
    let symbols = site.0.iter().map(|ip| symbols(*ip)).collect::<Vec<_>>();
    let inside = symbols.iter().flat_map(|symbols| symbols.iter()).take_while(|s| !s.is_root());
    let mut places = inside.filter_map(Symbol::place).collect::<Vec<_>>();
    // The compiler polls an async function through several wrappers that have its line.
    places.dedup_by(|one, other| (&one.file, one.line) == (&other.file, other.line));
    places
}

/// Why no place is known, where that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// The stack was not captured.
    Stack,
    /// Only the standard library has files and lines: the program was built without debug info.
    DebugInfo,
    /// Every frame belongs to a dependency, as in a task that a driver spawned for itself.
    UserCode,
}

/// Why no place is known for a captured stack.
pub(super) fn lack(site: &Site) -> Lack {
    if site.0.is_empty() {
        Lack::Stack
    } else if site.0.iter().any(|ip| symbols(*ip).iter().any(Symbol::is_known)) {
        Lack::UserCode
    } else {
        Lack::DebugInfo
    }
}

/// The code that asks for the current span, as far as the symbols of the program show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The driver of SQLite, which sends a command to the thread of a connection.
    SqliteDriver(Command),
    /// Another driver of sqlx.
    OtherDriver(Command),
    /// Code that belongs to no driver.
    Other,
    /// The program is optimised or stripped, so the symbols do not show it.
    Unknown,
}

/// The kind of command that a driver is about to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Statement,
    /// Transaction control, a `prepare`, or a check whether the connection is alive.
    Control,
    Unknown,
}

/// The database whose driver is on the stack, as sqlx names it; that of the innermost frame if
/// there are several.
pub(super) fn driver(site: &Site) -> Option<&'static str> {
    site.0.iter().find_map(|ip| symbols(*ip).iter().find_map(Symbol::driver))
}

/// Finds the code that asks for the current span.
pub(super) fn asker(site: &Site) -> Asker {
    let symbols = || site.0.iter().map(|ip| symbols(*ip));
    let Some(at) = symbols().position(|all| all.iter().any(|symbol| !symbol.is_between())) else {
        return Asker::Unknown;
    };
    let here = symbols().nth(at);
    let mut here = here.iter().flat_map(|all| all.iter()).filter(|symbol| !symbol.is_between());
    here.next().map_or(Asker::Unknown, Symbol::asker)
}

/// What a captured stack shows about who runs a statement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// An HTTP server, for a request.
    pub(super) is_served: bool,
    /// The thread of a test, or one that blocks on a runtime which it owns.
    pub(super) is_entry: bool,
    /// The thread of a test.
    pub(super) is_test: bool,
    /// The program is stripped of its symbols.
    pub(super) is_unreadable: bool,
}

/// Finds out who runs a statement, as far as the stack shows.
pub(super) fn stack(site: &Site) -> Stack {
    let any = |is: fn(&Symbol) -> bool| site.0.iter().any(|ip| symbols(*ip).iter().any(is));
    Stack {
        is_served: any(Symbol::is_of_server),
        is_entry: any(Symbol::is_entry),
        is_test: any(Symbol::is_of_harness),
        is_unreadable: !any(Symbol::is_of_this_library),
    }
}

/// Who wakes a future, as far as the stack shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waking {
    /// The name of the client library, if one does.
    pub(super) client: Option<&'static str>,
    /// The runtime, because a socket is ready.
    pub(super) is_socket: bool,
    /// The runtime, because a timer has elapsed.
    pub(super) is_clock: bool,
    /// A task that has ended.
    pub(super) is_task: bool,
}

/// Known client libraries: their names, source folders and crates.
const CLIENTS: [(&str, &[&str], &[&str]); 4] = [
    ("redis", &["/redis-"], &["redis::"]),
    ("mongodb", &["/mongodb-"], &["mongodb::"]),
    ("hyper", &["/hyper-", "/h2-"], &["hyper::", "hyper_util::", "h2::"]),
    ("tokio-postgres", &["/tokio-postgres-"], &["tokio_postgres::"]),
];

/// Finds out who wakes a future. `is_in_task` tells whether it is woken from inside a task.
pub(super) fn waking(site: &Site, is_in_task: bool) -> Waking {
    let symbols = site.0.iter().map(|ip| symbols(*ip)).collect::<Vec<_>>();
    let all = || symbols.iter().flat_map(|symbols| symbols.iter());
    // Frames above the one that polls tasks belong to the runtime, or to what encloses it.
    let inside = || all().take_while(|symbol| !symbol.is_root());
    let is_of = |folders, crates| inside().any(|symbol| symbol.is_in(folders, crates));
    let client = CLIENTS.iter().find(|(_, folders, crates)| is_of(folders, crates));
    let has = |file: &str, name: &str| {
        all().any(|symbol| symbol.is_in(&[file], &[]) || symbol.name.contains(name))
    };
    Waking {
        client: client.map(|(name, ..)| *name),
        is_socket: has("/src/runtime/io/", "tokio::runtime::io::"),
        is_clock: has("/src/runtime/time/wheel", "process_at_time"),
        // A task that has ended is none any more when its waiters are woken. In an optimised
        // program the function that does so is part of another one.
        is_task: has("/wake_join/", "wake_join")
            || !is_in_task
                && all().any(|s| s.is_in(&["/src/runtime/task/"], &["tokio::runtime::task::"])),
    }
}

fn symbols(ip: usize) -> Symbols {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(symbols) = known().get(&ip) {
        return symbols.clone();
    }
    let mut symbols = Vec::new();
    // The stack holds return addresses, which may belong to the line after the call.
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
    /// Whether its file is in one of these folders or, without debug info, its name is in one of
    /// these crates.
    fn is_in(&self, folders: &[&str], crates: &[&str]) -> bool {
        match &self.file {
            // Names of inlined functions have no path, so the file decides where it is known.
            Some(file) => {
                // `--remap-path-prefix` may have removed the beginning.
                let file = format!("/{}", file.to_string_lossy().replace('\\', "/"));
                folders.iter().any(|folder| file.contains(folder))
            }
            None => {
                let name = self.name.trim_start_matches(['<', '&']).trim_start_matches("mut ");
                crates.iter().any(|prefix| name.starts_with(prefix))
            }
        }
    }

    /// Whether its crate has debug info; the standard library, and perhaps libc, always come with
    /// theirs.
    fn is_known(&self) -> bool {
        let Some(file) = self.file.as_deref().filter(|_| self.line > 0) else { return false };
        file.extension().is_some_and(|extension| extension == "rs") && !is_of_std(file)
    }

    /// Whether it lies between the code that asks for the span and the capture of the stack.
    fn is_between(&self) -> bool {
        const CRATES: [&str; 6] =
            ["backtrace::", "request_budget::", "tracing", "core::", "std::", "alloc::"];
        const FOLDERS: [&str; 4] = ["/backtrace", "/tracing", "/rustc/", "/rustlib/"];
        self.is_ours() || self.is_in(&FOLDERS, &CRATES)
    }

    /// The database, if it belongs to the driver of one, or to a generic function for a type of
    /// that driver.
    fn driver(&self) -> Option<&'static str> {
        const DRIVERS: [(&str, &str, &str); 3] = [
            ("MySQL", "/sqlx-mysql", "sqlx_mysql::"),
            ("PostgreSQL", "/sqlx-postgres", "sqlx_postgres::"),
            ("SQLite", "/sqlx-sqlite", "sqlx_sqlite::"),
        ];
        let is_of = |folder, name| self.is_in(&[folder], &[]) || self.name.contains(name);
        DRIVERS.iter().find(|(_, folder, name)| is_of(folder, name)).map(|(database, ..)| *database)
    }

    /// Who asks for the span, where this is the first symbol that does not lie in between.
    fn asker(&self) -> Asker {
        let has = |parts: &[&str]| parts.iter().any(|part| self.name.contains(part));
        let command = |controls: &[&str], is_statement| match () {
            () if has(controls) => Command::Control,
            () if is_statement => Command::Statement,
            () => Command::Unknown,
        };
        match () {
            () if self.is_in(&["/sqlx-sqlite"], &["sqlx_sqlite::"]) => {
                // Everything but statements is sent by one generic function, or by one of these.
                const CONTROLS: [&str; 6] =
                    ["oneshot", "rollback", "unlock_db", "shutdown", "{async_fn#0}<", "describe"];
                let is_worker = || self.is_in(&["/connection/worker.rs"], &[]);
                let is_statement = has(&["ConnectionWorker::execute"])
                    || (self.name == "{async_fn#0}" && is_worker());
                Asker::SqliteDriver(command(&CONTROLS, is_statement))
            }
            () if self.is_in(&["/sqlx-postgres"], &["sqlx_postgres::"]) => {
                let is_aside = self.is_in(&["/src/copy.rs", "/src/listener.rs"], &[]);
                match is_aside || has(&["::copy::", "::listener::"]) {
                    true => Asker::OtherDriver(Command::Control),
                    false => Asker::OtherDriver(command(&["fetch_many"], has(&["::run::"]))),
                }
            }
            () if self.is_in(&["/sqlx-mysql"], &["sqlx_mysql::"]) => {
                Asker::OtherDriver(command(&["fetch_many"], has(&["::run::"])))
            }
            // In an optimised program a driver may have been inlined into this function.
            () if self.is_known() && cfg!(debug_assertions) => Asker::Other,
            () => Asker::Unknown,
        }
    }

    /// Whether it belongs to the measurement, the test harness or the runtime: frames above it are
    /// not user code.
    fn is_root(&self) -> bool {
        let is_measure = || self.is_ours() && self.is_in(&["/src/testing/measure.rs"], &[]);
        // Matches both `vendor/tokio` and `tokio-1.50.0`.
        let is_of_tokio =
            || self.is_in(&["/src/runtime/"], &[]) && self.is_in(&["/tokio-", "/tokio/"], &[]);
        let is_harness = self.is_in(&["/library/test/"], &["tokio::runtime::", "test::"]);
        is_harness || is_of_tokio() || is_measure()
    }

    /// Whether it belongs to the sources of this library.
    fn is_ours(&self) -> bool {
        match (&self.file, ours()) {
            (Some(file), Some(ours)) => file.starts_with(ours),
            (Some(_), None) => false,
            (None, _) => self.is_in(&[], &["request_budget::"]),
        }
    }

    /// Whether it belongs to this library, by its name; true somewhere on every stack that has
    /// symbols.
    fn is_of_this_library(&self) -> bool {
        self.name.contains(env!("CARGO_CRATE_NAME"))
    }

    /// Whether it belongs to hyper, on which every HTTP server runs; a client executes no
    /// statements there.
    fn is_of_server(&self) -> bool {
        self.is_in(&["/hyper-", "/hyper-util-"], &["hyper::", "hyper_util::"])
    }

    /// Whether it is the entry point of a test, or `block_on` of an owned runtime.
    fn is_entry(&self) -> bool {
        let files = ["/library/test/", "/src/runtime/runtime.rs"];
        self.is_in(&files, &["test::", "tokio::runtime::runtime::Runtime::block_on"])
    }

    /// Whether it belongs to a test harness, which runs each test on a thread.
    fn is_of_harness(&self) -> bool {
        let (folders, crates) =
            (["/library/test/", "/libtest-mimic-"], ["test::", "libtest_mimic::"]);
        self.is_in(&folders, &crates)
    }

    /// The place, if it is in the user's own code.
    fn place(&self) -> Option<Place> {
        let path = self.file.as_deref()?;
        // The compiler gives these shims the line on which the global allocator is declared.
        let is_allocator = self.name.contains("__rust_") || self.name.contains("__rdl_");
        if self.is_ours() || is_allocator || self.line == 0 || is_of_dependency(path) {
            return None;
        }
        Some(Place { file: short(path), line: self.line })
    }
}

/// The source folder of this library in debug info: where it was compiled, or what
/// `--remap-path-prefix` made of that.
fn ours() -> Option<&'static Path> {
    static OURS: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let mut found = None;
        // `resolve` expects a return address and looks up the instruction before it.
        let inside = (ours as *const () as usize).saturating_add(1);
        backtrace::resolve(inside as *mut c_void, |symbol| {
            let file = symbol.filename().filter(|file| file.ends_with("src/testing/site.rs"));
            found = found.take().or_else(|| Some(file?.ancestors().nth(2)?.to_owned()));
        });
        found
    });
    OURS.as_deref()
}

/// Whether a file belongs to the standard library, or to a crate that cargo has fetched or
/// vendored.
fn is_of_dependency(path: &Path) -> bool {
    static KNOWN: LazyLock<Mutex<HashMap<PathBuf, bool>>> = LazyLock::new(Mutex::default);
    if is_of_std(path) {
        return true;
    }
    let Some(folder) = path.parent() else { return false };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(folder.to_owned()).or_insert_with(|| {
        let here = std::env::current_dir().unwrap_or_default();
        is_in_dependency(folder, &here)
    })
}

/// Whether a folder belongs to a fetched or vendored crate, for a program whose current directory
/// is `here`.
fn is_in_dependency(folder: &Path, here: &Path) -> bool {
    // Cargo leaves one of these in what it unpacks, checks out or vendors.
    const MARKS: [&str; 2] = [".cargo-ok", ".cargo-checksum.json"];
    let text = format!("/{}/", folder.to_string_lossy().replace('\\', "/"));
    let is_marked =
        || folder.ancestors().any(|folder| MARKS.iter().any(|mark| folder.join(mark).exists()));
    if text.contains("/.cargo/registry/") || text.contains("/.cargo/git/") || is_marked() {
        return true;
    }
    // The outermost package or workspace around the current directory: tests run in that of their
    // package, while paths are from that of the workspace.
    let is_package = |folder: &&Path| folder.join("Cargo.toml").exists();
    let root = here.ancestors().filter(is_package).last().unwrap_or(here);
    if folder.is_relative() {
        // Otherwise it is of a library that is not Rust, or of code that was moved, or remapped to
        // nothing.
        return ![here, root].iter().any(|base| base.join(folder).exists())
            || has_versioned_part(&text);
    }
    // What is left of a registry that is gone since, or elsewhere, or remapped.
    !folder.starts_with(root) && has_versioned_part(&text)
}

/// Whether a folder on the way is named like `tokio-1.50.0`, as cargo unpacks packages.
fn has_versioned_part(path: &str) -> bool {
    path.split('/').any(|part| {
        part.match_indices('-').any(|(at, _)| {
            let version = part[at.saturating_add(1)..].split(['-', '+']).next().unwrap_or_default();
            let is_number = |n: &str| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit());
            version.split('.').count() == 3 && version.split('.').all(is_number)
        })
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
        assert_eq!(asker(&Site([1, 2, 3].into())), Asker::Unknown);
        assert_eq!(lack(&Site([1, 2, 3].into())), Lack::DebugInfo);
    }

    #[test]
    fn it_is_known_what_asks() {
        let asker = |name: &str| Symbol { name: name.to_owned(), file: None, line: 0 }.asker();
        let worker = "sqlx_sqlite::connection::worker::ConnectionWorker";
        let sqlite = |command| Asker::SqliteDriver(command);
        assert_eq!(
            asker(&format!("{worker}::execute::{{{{closure}}}}")),
            sqlite(Command::Statement)
        );
        assert_eq!(
            asker(&format!("{worker}::oneshot_cmd::{{{{closure}}}}")),
            sqlite(Command::Control)
        );
        let executor = "<&mut sqlx_sqlite::SqliteConnection as sqlx_core::Executor>::fetch_many";
        assert_eq!(asker(executor), sqlite(Command::Unknown));
        let run = "sqlx_postgres::connection::executor::<impl PgConnection>::run::{{closure}}";
        assert_eq!(asker(run), Asker::OtherDriver(Command::Statement));
        assert_eq!(asker("app::handler"), Asker::Unknown);
        let file = Some("/app/src/main.rs".into());
        let known = Symbol { name: "app::handler".to_owned(), file, line: 3 };
        let expected = if cfg!(debug_assertions) { Asker::Other } else { Asker::Unknown };
        assert_eq!(known.asker(), expected);
    }

    #[test]
    fn dependencies_are_known_by_their_folders_even_where_these_are_gone() {
        // None of these exists, so the package is the current directory.
        let is = |folder: &str| is_in_dependency(Path::new(folder), Path::new("/gone/app-1.2.3"));
        assert!(is(
            "/home/me/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/tokio-1.50.0/src"
        ));
        assert!(is("/opt/crates/tokio-1.50.0/src/runtime"));
        assert!(is("/deps/sqlx-core-0.9.0-alpha.1/src"));
        assert!(is("tokio-1.50.0/src/runtime"));
        assert!(is("nptl"));
        assert!(!is("/gone/app-1.2.3/src"));
        assert!(!is("/build/src"));
        assert!(!is("/build/http-1/src"));
        let this = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(!is_in_dependency(&this.join("src"), this));
        assert!(!is_in_dependency(Path::new("tests"), &this.join("src")));
    }

    #[test]
    fn this_library_knows_itself() {
        assert!(ours().is_some_and(|ours| ours.ends_with("src")), "{:?}", ours());
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
