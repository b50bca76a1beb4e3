//! In the SQL of which database a statement is.

use std::sync::Arc;

use super::site;
use crate::meter::recording::Entry;

/// The database of all statements that metered connections have executed, if it is one; else "".
pub(super) fn sole_database(entries: &[Arc<Entry>]) -> &'static str {
    let all = entries.iter().filter_map(|entry| entry.kind.database());
    let mut known = all.filter(|database| !database.is_empty());
    let Some(first) = known.next() else { return "" };
    if known.all(|other| other == first) { first } else { "" }
}

/// In the SQL of which database a text is; "" where that is not known, `None` where it is not SQL.
///
/// An event of sqlx names no driver, but is emitted by one, so it is on the stack unless the
/// program is stripped. It is looked for only where it matters, since that takes a while: `"x"` is
/// a value of MySQL's and a name elsewhere.
pub(super) fn dialect(entry: &Entry, text: &str, sole: &'static str) -> Option<&'static str> {
    let database = entry.kind.database()?;
    let is_ambiguous = database.is_empty() && text.contains(['"', '\\', '#']);
    Some(if is_ambiguous { site::driver(&entry.site).unwrap_or(sole) } else { database })
}

#[cfg(all(test, feature = "sqlx"))]
mod tests {
    use super::*;
    use crate::meter::recording::{Kind, Site};

    #[test]
    fn where_the_stack_does_not_tell_it_is_that_of_all_metered_statements() {
        let entry = |kind| Entry::new(kind, Some("SELECT \"x\""), Site::default());
        let [mysql, postgres] = ["MySQL", "PostgreSQL"].map(|name| entry(Kind::Sql(name)));
        let others = [entry(Kind::Unmetered), entry(Kind::Observed), entry(Kind::Shape)];
        let of = |metered: &[&Arc<Entry>]| {
            let all = others.iter().chain(metered.iter().copied()).cloned().collect::<Vec<_>>();
            let sole = sole_database(&all);
            let dialects = all.iter().map(|entry| dialect(entry, "SELECT \"x\"", sole));
            dialects.collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [Some(""), Some(""), None]);
        assert_eq!(of(&[&mysql])[..3], [Some("MySQL"), Some("MySQL"), None]);
        assert_eq!(of(&[&mysql, &mysql])[..3], [Some("MySQL"), Some("MySQL"), None]);
        assert_eq!(of(&[&mysql, &postgres])[..3], [Some(""), Some(""), None]);
        // Only what differs between them is listed.
        assert_eq!(dialect(&others[0], "SELECT 1", "MySQL"), Some(""));
    }
}
