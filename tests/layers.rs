//! The modules of `src` use only those below them, in the order that ARCHITECTURE.md gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Uses of a higher module that are still to be removed. Nothing is added here.
const EXCEPTIONS: [(&str, &str); 2] = [("meter", "report"), ("meter", "scope")];

/// The floor of each module, counted from the top: the list under "Layers".
fn floors() -> BTreeMap<String, usize> {
    let text = include_str!("../ARCHITECTURE.md");
    let list = text.split("```text\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = list.expect("ARCHITECTURE.md has a list of layers").lines().enumerate();
    let modules = lines.flat_map(|(floor, line)| {
        // The names are two spaces apart; after more than two comes what they are for.
        let names = line.split("   ").next().unwrap_or_default();
        names.split_whitespace().map(move |name| (name.trim_end_matches(".rs").to_owned(), floor))
    });
    modules.collect()
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of src can be read") {
        let path = entry.expect("an entry can be read").path();
        match path.is_dir() {
            true => files(&path, into),
            false => into.push(path),
        }
    }
}

/// The modules at the top of the crate that a file names by `crate::`, outside of comments and
/// tests.
fn uses(source: &str) -> BTreeSet<String> {
    let code = source.split("\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let paths = code.split("crate::").skip(1).flat_map(|path| {
        // Of `crate::{a, b::c}` each, of `crate::a::b` the first.
        let group = path.strip_prefix('{').and_then(|rest| rest.split('}').next());
        group.unwrap_or(path).split(',').take(if group.is_some() { usize::MAX } else { 1 })
    });
    paths.filter_map(|path| path.trim().split(|c| !is_name(c)).next().map(str::to_owned)).collect()
}

#[test]
fn modules_use_only_those_below_them() {
    let (floors, src) = (floors(), Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut arrows = BTreeSet::new();
    for path in all {
        let inside = path.strip_prefix(&src).expect("it was found there").with_extension("");
        let module = inside.iter().next().and_then(|name| name.to_str()).expect("a name in UTF-8");
        assert!(floors.contains_key(module), "{module} is missing under \"Layers\"");
        let is_test = inside.ends_with("tests");
        let source = fs::read_to_string(&path).expect("a file of src can be read");
        let used = uses(&source).into_iter().filter(|used| floors.contains_key(used));
        arrows.extend(used.filter(|_| !is_test).map(|used| (module.to_owned(), used)));
    }
    let floor = |module: &str| floors[module];
    let up = arrows.iter().filter(|(user, used)| floor(used) < floor(user));
    let up: Vec<_> = up.map(|(user, used)| (user.as_str(), used.as_str())).collect();
    assert_eq!(up, EXCEPTIONS, "left: the uses of a higher module; right: those that are known");

    let level = arrows.iter().filter(|(user, used)| user != used && floor(used) == floor(user));
    let circles: Vec<_> =
        level.filter(|(user, used)| arrows.contains(&(used.clone(), user.clone()))).collect();
    assert!(circles.is_empty(), "modules of one line use each other: {circles:?}");
    assert!(arrows.len() > 50, "the modules are found: {}", arrows.len());
}
