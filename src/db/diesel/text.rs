//! What Diesel shows of a statement.

use std::fmt::{self, Display, Write};

/// Between a statement and its values, where Diesel shows both.
const BINDS: &str = " -- binds: ";

/// Single statements that are transaction control, by their first word.
const CONTROL: [&str; 6] = ["BEGIN", "COMMIT", "RELEASE", "ROLLBACK", "SAVEPOINT", "START"];

/// What Diesel executes to set a connection up, on PostgreSQL and on MySQL.
const SETUP: [&str; 6] = [
    "SET TIME ZONE 'UTC'",
    "SET CLIENT_ENCODING TO 'UTF8'",
    "SET time_zone = '+00:00';",
    "SET character_set_client = 'utf8mb4'",
    "SET character_set_connection = 'utf8mb4'",
    "SET character_set_results = 'utf8mb4'",
];

/// Puts the text of a statement, without the values behind it, in the place of another one.
///
/// Stays empty where the statement cannot be made; Diesel does not execute it then.
pub(super) fn read(query: &dyn Display, text: &mut String) {
    text.clear();
    // It fails as soon as the values begin, so that they are not even formatted.
    let _ = write!(UpToBinds(text), "{query}");
}

/// Whether this is transaction control.
pub(super) fn is_control(text: &str) -> bool {
    let statement = text.trim().trim_end_matches(';');
    let word = statement.split_whitespace().next().unwrap_or_default();
    let is_first = |control: &&str| word.eq_ignore_ascii_case(control);
    // More than one statement may do anything.
    CONTROL.iter().any(is_first) && !statement.contains(';')
}

/// Whether Diesel executes this to set a new connection up.
pub(super) fn is_setup(text: &str) -> bool {
    SETUP.contains(&text)
}

struct UpToBinds<'a>(&'a mut String);

impl Write for UpToBinds<'_> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        // The mark may begin in the text before.
        let begin = self.0.floor_char_boundary(self.0.len().saturating_sub(BINDS.len()));
        self.0.push_str(piece);
        match self.0[begin..].find(BINDS) {
            Some(at) => {
                self.0.truncate(begin.saturating_add(at));
                Err(fmt::Error)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(query: &dyn Display) -> String {
        let mut text = "before".to_owned();
        read(query, &mut text);
        text
    }

    /// Fails the test if it is formatted.
    struct Value;

    impl fmt::Debug for Value {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("a value is formatted")
        }
    }

    #[test]
    fn values_are_not_even_formatted() {
        let query = "SELECT id FROM users WHERE name = $1";
        assert_eq!(text(&format_args!("{query} -- binds: {Value:?}")), query);
        assert_eq!(text(&"ü -- binds: [\"ü -- binds: 1\"]"), "ü");
        assert_eq!(text(&format_args!("{}{}{Value:?}", "ü -- bi", "nds: ")), "ü");
        assert_eq!(text(&"SELECT 1 -- bind"), "SELECT 1 -- bind");
    }

    #[test]
    fn what_cannot_be_made_has_no_text() {
        struct Fails;

        impl Display for Fails {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                Err(fmt::Error)
            }
        }

        assert_eq!(text(&Fails), "");
    }

    #[test]
    fn control_is_one_statement_by_its_first_word() {
        for control in [
            "BEGIN",
            "begin immediate",
            " BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE ; ",
            "START TRANSACTION",
            "SAVEPOINT diesel_savepoint_1",
            "RELEASE SAVEPOINT diesel_savepoint_1",
            "ROLLBACK TO SAVEPOINT diesel_savepoint_1",
            "COMMIT;",
        ] {
            assert!(is_control(control), "{control}");
        }
        for other in ["", ";", "BEGIN; DELETE FROM users; COMMIT", "SELECT 1", "BEGINNING"] {
            assert!(!is_control(other), "{other}");
        }
    }
}
