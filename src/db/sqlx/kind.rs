//! The kind of database of a connection, which determines how its session is reset.

use std::fmt::Write as _;

use sqlx::{ConnectOptions as _, Database};

/// The kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Postgres,
    MySql,
    /// In a file: another connection finds the same data.
    SqliteFile,
    /// In memory: closing the last connection loses the data.
    SqliteMemory,
    /// A driver that this crate does not know.
    Other,
}

impl Kind {
    /// That of a single connection, whose options are not known.
    pub(super) fn of_single<DB: Database>() -> Self {
        Self::named(DB::NAME, || false)
    }

    /// That of the connections of this pool.
    pub(super) fn of<DB: Database>(pool: &sqlx::Pool<DB>) -> Self {
        let options = pool.connect_options();
        if DB::NAME != "Any" {
            // Not as a URL: SQLite's default options make none.
            return Self::named(DB::NAME, || is_in_memory(&debug::<DB>(&options)));
        }
        let url = options.to_url_lossy();
        let name = match url.scheme() {
            "postgres" | "postgresql" => "PostgreSQL",
            "mysql" | "mariadb" => "MySQL",
            scheme => scheme,
        };
        Self::named(name, || is_in_memory(url.as_str()))
    }

    fn named(name: &str, is_in_memory: impl FnOnce() -> bool) -> Self {
        match name {
            "PostgreSQL" => Self::Postgres,
            "MySQL" => Self::MySql,
            "SQLite" | "sqlite" => match is_in_memory() {
                true => Self::SqliteMemory,
                false => Self::SqliteFile,
            },
            _ => Self::Other,
        }
    }

    pub(super) fn is_sqlite(self) -> bool {
        matches!(self, Self::SqliteFile | Self::SqliteMemory)
    }
}

/// The options as text, since they have no accessors that are generic over the database.
pub(super) fn debug<DB: Database>(
    options: &<DB::Connection as sqlx::Connection>::Options,
) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{options:?}");
    text
}

/// Whether the options of SQLite name a database in memory, or a temporary one. A file of such a
/// name is taken for one as well: it is cleaned then where it could have been closed.
fn is_in_memory(options: &str) -> bool {
    let signs = ["in_memory: true", ":memory:", "mode=memory", "filename: \"\""];
    signs.iter().any(|sign| options.contains(sign))
        || options == "sqlite:"
        || options == "sqlite://"
}
