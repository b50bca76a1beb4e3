//! Tests that need a process of their own.

use std::env;
use std::process::{Command, Output};

/// Runs a test in a process of its own: this program again, with no other test in it. Returns what it
/// printed; inside that process it returns nothing.
pub(crate) fn alone(name: &str, test: impl FnOnce()) -> Option<Output> {
    const ALONE: &str = "REQUEST_BUDGET_TEST_ALONE";
    if env::var(ALONE).is_ok_and(|alone| alone == name) {
        test();
        return None;
    }
    let program = env::current_exe().expect("this program has a path");
    let output = Command::new(program).args(["--exact", name]).env(ALONE, name).output();
    let output = output.expect("starts");
    let has_run = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && has_run, "{name}, in a process of its own: {output:?}");
    Some(output)
}
