//! Annotations that GitHub shows at the line of a pull request.

use std::path::Path;

/// Whether a workflow of GitHub runs here.
pub(super) fn is_here() -> bool {
    std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

/// The workflow command that annotates a line.
pub(super) fn error(file: &str, line: u32, title: &str, message: &str) -> String {
    let workspace = std::env::var("GITHUB_WORKSPACE").unwrap_or_default();
    let whole = std::env::current_dir().unwrap_or_default().join(file);
    // Names in annotations start at the root of the repository.
    let file = match whole.strip_prefix(&workspace) {
        Ok(file) if !workspace.is_empty() => file,
        _ => Path::new(file),
    };
    let file = property(&file.to_string_lossy());
    format!("::error file={file},line={line},title={}::{}", property(title), data(message))
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_field_is_escaped() {
        assert_eq!(
            error("src/a.rs", 7, "21 queries, limit 20: 1 too many", "100%\nof it, a::b"),
            "::error file=src/a.rs,line=7,title=21 queries%2C limit 20%3A 1 too many::100%25%0Aof it, a::b"
        );
    }
}
