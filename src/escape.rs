//! Escapes in the names and texts of others what could forge a line of a log, or hide a part of it.

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde::{Serialize, Serializer};

/// A text on one line: control characters, line breaks, marks that change the direction and such
/// that are invisible are written as in a Rust literal.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_clean(self.0) {
            return f.write_str(self.0);
        }
        let mut rest = self.0;
        while let Some(at) = rest.find(is_hazard) {
            let (clean, hazard) = rest.split_at(at);
            f.write_str(clean)?;
            let mut chars = hazard.chars();
            if let Some(hazard) = chars.next() {
                write!(f, "{}", hazard.escape_default())?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// The same as a string, which is the text itself where there is nothing to escape.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    match is_clean(text) {
        true => text.into(),
        false => Escaped(text).to_string().into(),
    }
}

/// The text of a statement on one line: each line break, with the white space around it, is one
/// space, and the rest is escaped.
pub(crate) fn one_line(statement: &str) -> Cow<'_, str> {
    if is_clean(statement) {
        return statement.into();
    }
    let lines: Vec<_> =
        statement.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    Escaped(&lines.join(" ")).to_string().into()
}

/// Serialises a name escaped.
pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escaped(text))
}

/// Serialises a name, where there is one, escaped.
pub(crate) fn serialize_option<S: Serializer>(
    text: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    text.as_deref().map(escaped).serialize(serializer)
}

/// Serialises the text of a statement on one line.
pub(crate) fn serialize_line<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&one_line(text))
}

/// Escapes all that is written through it.
pub(crate) struct Escaping<'a, 'b>(pub(crate) &'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        fmt::Display::fmt(&Escaped(text), self.0)
    }
}

fn is_clean(text: &str) -> bool {
    // Nearly all names and texts are printable ASCII, which needs no decoding.
    text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !text.contains(is_hazard)
}

/// Whether a character would break a line, or the order or the look of what is around it.
pub(crate) fn is_hazard(c: char) -> bool {
    let breaks_line = matches!(c, '\u{2028}' | '\u{2029}');
    let is_invisible = matches!(
        c,
        '\u{AD}'
            | '\u{180E}'
            | '\u{200B}'..='\u{200D}'
            | '\u{2060}'..='\u{2064}'
            | '\u{206A}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}'
    );
    let changes_direction = matches!(
        c,
        '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || breaks_line || is_invisible || changes_direction
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        let text = "a\nb\r\u{1b}[31m\u{8}\u{85}\u{2028}\u{202e}\u{2066}\u{feff}ü\\n";
        let escaped = r"a\nb\r\u{1b}[31m\u{8}\u{85}\u{2028}\u{202e}\u{2066}\u{feff}ü\n";
        assert_eq!(super::escaped(text), escaped);
        assert_eq!(Escaped(text).to_string(), escaped);
        assert!(matches!(super::escaped("SELECT 'ü'"), Cow::Borrowed("SELECT 'ü'")));
    }

    #[test]
    fn a_statement_is_on_one_line() {
        let text = "\n  SELECT a,\r\n\n\t b -- 'x  y'\tz\n FROM t\u{1b}";
        assert_eq!(one_line(text), r"SELECT a, b -- 'x  y'\tz FROM t\u{1b}");
        assert!(matches!(one_line("SELECT  a"), Cow::Borrowed("SELECT  a")));
    }

    #[test]
    fn what_is_quoted_by_debug_is_escaped() {
        for hazard in ('\0'..=char::MAX).filter(|c| is_hazard(*c)) {
            let quoted = format!("{:?}", format!("a{hazard}b"));
            assert!(!quoted.contains(is_hazard), "{:?}", u32::from(hazard));
        }
    }

    proptest! {
        #[test]
        fn nothing_is_left_and_what_is_escaped_stays(text in any::<String>()) {
            let once = escaped(&text).into_owned();
            prop_assert!(!once.contains(is_hazard));
            prop_assert_eq!(escaped(&once), once.as_str());
            prop_assert!(!one_line(&text).contains(is_hazard));
        }
    }
}
