//! What statements change in the session of their connection, beyond their transaction.

use super::kind::Kind;

/// What the statements on a connection may have left in its session.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Something that only closing the connection certainly undoes: a setting, or a statement that
    /// was not seen.
    pub(super) is_lasting: bool,
    /// Temporary objects, where they are not looked for on the server.
    pub(super) has_temporary: bool,
    /// Databases that were attached (SQLite).
    pub(super) attached: Vec<String>,
}

impl Changes {
    /// Notes what this text may change. Nearly all texts change nothing, which their first word
    /// shows.
    pub(super) fn note(&mut self, kind: Kind, text: &str, may_be_batch: bool) {
        // SQLite executes all that is in a text, also in one that was prepared.
        if (may_be_batch || kind.is_sqlite()) && text.contains(';') {
            // A semicolon in a literal yields a part that is no known statement, which is treated
            // as a change: the safe side.
            text.split(';').for_each(|text| self.note_one(kind, text));
        } else {
            self.note_one(kind, text);
        }
    }

    fn note_one(&mut self, kind: Kind, text: &str) {
        let text = skip_comments(text);
        let word = text.split(|byte: char| !byte.is_ascii_alphabetic()).next().unwrap_or("");
        match kind {
            _ if text.is_empty() => {}
            Kind::Postgres => self.is_lasting |= changes_postgres(word, text),
            Kind::MySql => self.is_lasting |= changes_mysql(word, text),
            Kind::SqliteFile | Kind::SqliteMemory => self.note_sqlite(word, text),
            Kind::Other => self.is_lasting = true,
        }
    }

    fn note_sqlite(&mut self, word: &str, text: &str) {
        if is(word, "PRAGMA") {
            self.is_lasting = true;
        } else if is(word, "CREATE") {
            self.has_temporary |= contains(text, "temp");
        } else if is(word, "ATTACH") {
            self.attached.push(last_name(text).to_owned());
        }
    }
}

/// Locks, temporary tables, cursors, channels and prepared statements are looked for on the server.
fn changes_postgres(word: &str, text: &str) -> bool {
    // Those of the drivers and of nearly all programs first.
    const HARMLESS: [&str; 39] = [
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "WITH",
        "VALUES",
        "BEGIN",
        "START",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "END",
        "ABORT",
        "MERGE",
        "TABLE",
        "EXPLAIN",
        "SHOW",
        "LOCK",
        "NOTIFY",
        "LISTEN",
        "UNLISTEN",
        "COPY",
        "CREATE",
        "ALTER",
        "DROP",
        "TRUNCATE",
        "COMMENT",
        "GRANT",
        "REVOKE",
        "ANALYZE",
        "VACUUM",
        "REINDEX",
        "REFRESH",
        "DECLARE",
        "FETCH",
        "CLOSE",
        "PREPARE",
        "EXECUTE",
    ];
    if is(word, "SET") {
        let scope = text[word.len()..].split_ascii_whitespace().next().unwrap_or("");
        return !["LOCAL", "TRANSACTION", "CONSTRAINTS"].iter().any(|local| is(scope, local));
    }
    !HARMLESS.iter().any(|harmless| is(word, harmless)) || sets_a_setting(text)
}

/// Whether `set_config` is called for the session, and not for the transaction.
fn sets_a_setting(text: &str) -> bool {
    const NAME: &str = "set_config";
    text.match_indices('(').any(|(at, _)| {
        let name = text[..at].trim_end().as_bytes();
        let is_call = name.len() >= NAME.len()
            && name[name.len().saturating_sub(NAME.len())..].eq_ignore_ascii_case(NAME.as_bytes());
        is_call && {
            let arguments = text[at..].split_inclusive(')').next().unwrap_or("");
            let last = arguments.trim_end_matches(')').rsplit(',').next().unwrap_or("");
            !is(last.trim(), "true")
        }
    })
}

/// Locks of both kinds are let go of in any case.
fn changes_mysql(word: &str, text: &str) -> bool {
    const HARMLESS: [&str; 32] = [
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "REPLACE",
        "WITH",
        "VALUES",
        "BEGIN",
        "START",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "TABLE",
        "EXPLAIN",
        "DESCRIBE",
        "DESC",
        "SHOW",
        "LOCK",
        "UNLOCK",
        "CREATE",
        "ALTER",
        "DROP",
        "TRUNCATE",
        "RENAME",
        "GRANT",
        "REVOKE",
        "ANALYZE",
        "OPTIMIZE",
        "CHECK",
        "FLUSH",
        "DO",
    ];
    // A variable of the session can be set in any statement.
    let is_harmless = HARMLESS.iter().any(|harmless| is(word, harmless)) && !text.contains('@');
    let second = || text[word.len()..].split_ascii_whitespace().next().unwrap_or("");
    !is_harmless
        || (is(word, "CREATE") && contains(text, "temporary"))
        // `BEGIN NOT ATOMIC` is a program of its own, and `LOCK INSTANCE` is not what is unlocked.
        || (is(word, "BEGIN") && is(second(), "NOT"))
        || (is(word, "LOCK") && is(second(), "INSTANCE"))
}

/// The name at the end of a text, quoted or not.
fn last_name(text: &str) -> &str {
    let text = text.trim_end_matches(|end: char| end.is_whitespace() || end == ';');
    let quoted = ["\"\"", "''", "``", "[]"].iter().find_map(|pair| {
        let (open, close) = pair.split_at(1);
        text.strip_suffix(close)?.rsplit(open).next()
    });
    quoted.or_else(|| text.rsplit(char::is_whitespace).next()).unwrap_or("")
}

/// The text from its first statement on.
fn skip_comments(text: &str) -> &str {
    let mut text = text;
    loop {
        text = text.trim_start_matches(|start: char| start.is_whitespace() || start == '(');
        let rest = if let Some(comment) = text.strip_prefix("--") {
            comment.split_once('\n')
        } else if let Some(comment) = text.strip_prefix("/*") {
            // What MySQL executes though it is a comment is no word, and so on the safe side.
            if comment.starts_with(['!', 'M']) { None } else { comment.split_once("*/") }
        } else {
            return text;
        };
        let Some((_, rest)) = rest else { return text };
        text = rest;
    }
}

fn is(word: &str, upper: &str) -> bool {
    word.eq_ignore_ascii_case(upper)
}

fn contains(text: &str, lower: &str) -> bool {
    text.as_bytes().windows(lower.len()).any(|part| part.eq_ignore_ascii_case(lower.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(kind: Kind, text: &str) -> bool {
        let mut changes = Changes::default();
        changes.note(kind, text, true);
        changes.is_lasting
    }

    #[test]
    fn what_lasts_beyond_the_transaction_is_noted() {
        for text in [
            "SET statement_timeout = 1",
            "set role nobody",
            "/* a; b */ -- c\n RESET ALL",
            "SELECT set_config('a.b', $1, false)",
            "WITH s AS (SELECT Set_Config ('a.b', '1', FALSE)) SELECT 1",
            "SELECT set_config('a.b', 'x', true), set_config('a.b', 'y', $1)",
            "SELECT 1; SET a.b = 1",
            "CALL anything()",
            "DO $$ BEGIN END $$",
            "DISCARD ALL",
        ] {
            assert!(changes(Kind::Postgres, text), "{text}");
        }
        for text in [
            "SET @a = 1",
            "SELECT 1 INTO @a",
            "USE other",
            "CREATE TEMPORARY TABLE t (a INT)",
            "create or replace temporary table t (a INT)",
            "/*!50000 SET sql_mode = '' */",
            "/*M! SET sql_mode = '' */",
            "PREPARE s FROM 'SELECT 1'",
            "BEGIN NOT ATOMIC SET SESSION sql_mode = ''; END",
            "LOCK INSTANCE FOR BACKUP",
        ] {
            assert!(changes(Kind::MySql, text), "{text}");
        }
    }

    #[test]
    fn what_a_rollback_undoes_is_not() {
        for text in [
            "SELECT a, f(b) FROM c",
            " select 1",
            "(SELECT 1) UNION (SELECT 2)",
            "-- a comment\nINSERT INTO t VALUES ($1)",
            "SET LOCAL statement_timeout = 1",
            "set transaction isolation level serializable",
            "SELECT set_config('a.b', $1, true)",
            "SELECT pg_advisory_lock(7)",
            "BEGIN; SELECT 1; COMMIT;",
            "",
        ] {
            assert!(!changes(Kind::Postgres, text), "{text}");
        }
        for text in [
            "SELECT GET_LOCK('a', 1)",
            "LOCK TABLES t WRITE",
            "CREATE TABLE t (a INT)",
            "BEGIN",
            "begin work",
        ] {
            assert!(!changes(Kind::MySql, text), "{text}");
        }
    }

    #[test]
    fn sqlite_tells_temporary_objects_and_attached_databases_apart() {
        let mut changes = Changes::default();
        for text in ["CREATE TABLE t (a)", "SELECT 1", "BEGIN"] {
            changes.note(Kind::SqliteFile, text, true);
        }
        assert!(!changes.is_lasting && !changes.has_temporary && changes.attached.is_empty());
        changes.note(Kind::SqliteFile, "CREATE TEMP TABLE t (a)", false);
        changes.note(Kind::SqliteFile, "attach database 'x.db' as \"the other\" ;", false);
        assert!(!changes.is_lasting && changes.has_temporary);
        assert_eq!(changes.attached, ["the other"]);
        changes.note(Kind::SqliteMemory, "PRAGMA foreign_keys = OFF", false);
        assert!(changes.is_lasting);
    }

    #[test]
    fn sqlite_executes_a_prepared_text_to_its_end() {
        let mut changes = Changes::default();
        let prepared = "; SELECT 1; CREATE TEMP TABLE t (a); ATTACH 'x.db' AS x; PRAGMA a = 1";
        changes.note(Kind::SqliteFile, prepared, false);
        assert!(changes.is_lasting && changes.has_temporary);
        assert_eq!(changes.attached, ["x"]);
    }
}
