//! Where a pool connects to, for people: without a user, and never with a password.

use std::path::Path;

use sqlx::{ConnectOptions as _, Database};

use super::kind::{Kind, debug};

/// As in `postgres://db.example.com:5432/shop`, or the name of the database where the rest is not
/// known.
pub(super) fn of<DB: Database>(pool: &sqlx::Pool<DB>, kind: Kind) -> String {
    let options = pool.connect_options();
    if DB::NAME == "Any" {
        // A copy of what it was made from.
        let url = options.to_url_lossy();
        return match kind {
            Kind::SqliteMemory => IN_MEMORY.to_owned(),
            Kind::SqliteFile => format!("sqlite:{}", file_name(url.path())),
            _ => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                let host = url.host_str().unwrap_or_default();
                format!("{}://{host}{port}{}", url.scheme(), url.path())
            }
        };
    }
    // Not as a URL: options with a host or user that does not fit into one panic when they make it.
    of_options(DB::NAME, kind, &debug::<DB>(&options))
}

const IN_MEMORY: &str = "sqlite::memory:";

fn of_options(database: &str, kind: Kind, options: &str) -> String {
    let scheme = match kind {
        Kind::SqliteMemory => return IN_MEMORY.to_owned(),
        Kind::SqliteFile => {
            let name = text(options, "filename: \"").unwrap_or(database);
            return format!("sqlite:{}", file_name(name));
        }
        Kind::Postgres => "postgres",
        Kind::MySql => "mysql",
        Kind::Other => return database.to_owned(),
    };
    let socket = text(options, "socket: Some(\"").map(ToOwned::to_owned);
    let server = socket.or_else(|| {
        let host = text(options, "host: \"")?;
        Some(match number(options, "port: ") {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    });
    let name =
        text(options, "database: Some(\"").map(|name| format!("/{name}")).unwrap_or_default();
    format!("{scheme}://{}{name}", server.unwrap_or_default())
}

/// The file without its folders, which are long and mean little.
fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

/// The text after a label that ends in a quotation mark. Where one is in a text of the options,
/// such as a password, it is escaped: so nothing in that passes for a label.
fn text<'a>(options: &'a str, label: &str) -> Option<&'a str> {
    let (text, _) = after(options, label)?.split_once('"')?;
    (!text.contains('\\')).then_some(text)
}

fn number<'a>(options: &'a str, label: &str) -> Option<&'a str> {
    let (number, _) = after(options, label)?.split_once([',', ' ', '}'])?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(number)
}

/// What comes after the first of these labels that is a whole one: not the end of another.
fn after<'a>(options: &'a str, label: &str) -> Option<&'a str> {
    let mut parts = options.match_indices(label);
    let (at, _) = parts.find(|(at, _)| {
        let before = options[..*at].chars().next_back();
        before.is_none_or(|before| matches!(before, ' ' | '{' | '('))
    })?;
    options.get(at.saturating_add(label.len())..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_in_no_name() {
        let options = r#"PgConnectOptions { host: "db.example.com", port: 5432, socket: None, username: "shop", password: Some("a\", database: Some(\"evil"), database: Some("shop"), ssl_mode: Prefer }"#;
        let name = of_options("PostgreSQL", Kind::Postgres, options);
        assert_eq!(name, "postgres://db.example.com:5432/shop");
        let options = r#"PgConnectOptions { host: "a", port: 1, socket: Some("/run/pg"), password: Some("secret"), database: None }"#;
        assert_eq!(of_options("PostgreSQL", Kind::Postgres, options), "postgres:///run/pg");
        for unknown in ["", "Hidden", r#"X { password: Some("secret") }"#, r#"X { host: "a"#] {
            assert_eq!(of_options("MySQL", Kind::MySql, unknown), "mysql://");
        }
    }

    #[test]
    fn a_file_is_named_without_its_folders() {
        let options = r#"SqliteConnectOptions { filename: "/srv/shop/data.db", in_memory: false }"#;
        assert_eq!(of_options("SQLite", Kind::SqliteFile, options), "sqlite:data.db");
        assert_eq!(of_options("SQLite", Kind::SqliteMemory, options), "sqlite::memory:");
        assert_eq!(of_options("SQLite", Kind::SqliteFile, "Hidden"), "sqlite:SQLite");
    }

    #[tokio::test]
    async fn the_drivers_show_what_is_looked_for() {
        use sqlx::pool::PoolOptions;

        let lazy = "postgres://shop:secret@db.example.com:5433/orders?sslmode=disable";
        let pool = PoolOptions::<sqlx::Postgres>::new().connect_lazy(lazy).unwrap();
        assert_eq!(of(&pool, Kind::of(&pool)), "postgres://db.example.com:5433/orders");
        let lazy = "mysql://shop:secret@[::1]/orders";
        let pool = PoolOptions::<sqlx::MySql>::new().connect_lazy(lazy).unwrap();
        assert_eq!(of(&pool, Kind::of(&pool)), "mysql://[::1]:3306/orders");
        let lazy = "sqlite:///srv/shop/data.db";
        let pool = PoolOptions::<sqlx::Sqlite>::new().connect_lazy(lazy).unwrap();
        assert_eq!(of(&pool, Kind::of(&pool)), "sqlite:data.db");
        sqlx::any::install_default_drivers();
        let lazy = "postgres://shop:secret@db.example.com:5433/orders?sslmode=disable";
        let pool = PoolOptions::<sqlx::Any>::new().connect_lazy(lazy).unwrap();
        assert_eq!(of(&pool, Kind::of(&pool)), "postgres://db.example.com:5433/orders");
    }
}
