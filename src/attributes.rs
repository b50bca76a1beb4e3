//! Attributes, which tell one run of a unit of work from another.

use std::borrow::Cow;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::escape::{escaped, is_hazard};

/// A few facts that tell one run from another of the same name: the id of a job, its attempt.
///
/// Each [`Violation`](crate::Violation), each event and each [`Report`](crate::report::Report)
/// contains them. They do not belong into a name, because the number of ids is unbounded. An empty
/// set allocates nothing.
///
/// Their `Display` is `job=7 attempt=2`, with a value that contains white space in quotes; they
/// serialise as a map.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use request_budget::report::Attributes;
/// use request_budget::{Budget, BudgetExt, ExternalExt};
///
/// let run = Attributes::new().with("job", 7).with("attempt", 2);
/// let work = async { async {}.external("payments").await };
/// let cut = work
///     .budgeted("send_invoices", Budget::new().external_calls(request_budget::Limit::hard(0)))
///     .with_attributes(run)
///     .await
///     .unwrap_err();
/// assert_eq!(cut.violation().attributes.value("attempt"), Some("2"));
/// assert!(cut.to_string().starts_with("send_invoices (job=7 attempt=2) was cut: "));
/// # }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<(Cow<'static, str>, String)>);

impl Attributes {
    /// Creates an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an attribute, or replaces the value of the one with this name.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        let (name, value) = (name.into(), value.to_string());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
        self
    }

    /// The value of the attribute with this name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Names and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, value)) in self.iter().enumerate() {
            if position > 0 {
                f.write_str(" ")?;
            }
            write_word(f, name)?;
            f.write_str("=")?;
            write_word(f, value)?;
        }
        Ok(())
    }
}

/// Formats a value for a log line; what could not be read back as one word is quoted.
fn write_word(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let is_of_word = |c: char| !c.is_whitespace() && !is_hazard(c) && c != '"' && c != '=';
    match !text.is_empty() && text.chars().all(is_of_word) {
        true => f.write_str(text),
        // `Debug` quotes and escapes.
        false => write!(f, "{text:?}"),
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(&escaped(name), &escaped(value))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_print_as_words_in_the_order_of_adding() {
        let attributes = Attributes::new().with("job", "a b").with("attempt", 1).with("key", "");
        assert_eq!(attributes.to_string(), r#"job="a b" attempt=1 key="""#);
        assert_eq!(Attributes::new().to_string(), "");
    }

    #[test]
    fn nothing_in_them_breaks_the_line() {
        let attributes = Attributes::new().with("job\n7", "a\u{202e}b").with("k=v", "\u{1b}[31m");
        let printed = r#""job\n7"="a\u{202e}b" "k=v"="\u{1b}[31m""#;
        assert_eq!(attributes.to_string(), printed);
    }

    #[test]
    fn a_later_value_replaces_an_earlier_one() {
        let attributes = Attributes::new().with("attempt", 1).with("job", 7).with("attempt", 2);
        assert_eq!(attributes.to_string(), "attempt=2 job=7");
        assert_eq!(attributes.value("attempt"), Some("2"));
        assert_eq!(attributes.value("queue"), None);
    }
}
