//! On GitHub a failure is shown at the line that is to blame. A process of its own, for its
//! environment.

use std::env;
use std::process::Command;

use request_budget::db::Query;
use request_budget::testing::measure;

const ASKED: &str = "REQUEST_BUDGET_TEST_ANNOTATION";

const LINE: u32 = line!() + 2;
fn execute() {
    drop(Query::start("SELECT 100").unwrap());
}

/// Fails when it is asked to; does nothing in an ordinary run.
#[tokio::test]
async fn failing() {
    if env::var_os(ASKED).is_some() {
        measure(async { execute() }).await.assert_queries(0);
    }
}

/// What the failing test prints.
fn printed(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "github::failing"]).env(ASKED, "1");
    command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_WORKSPACE");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_failure_is_annotated_on_github_and_nowhere_else() {
    let annotation = |file: &str| {
        format!(
            "\n::error file={file},line={LINE},title=1 query%2C expected 0%3A 1 too many::1 query, "
        )
    };
    let said = printed(&[("GITHUB_ACTIONS", "true")]);
    assert!(said.contains(&annotation("tests/testing/github.rs")), "{said}");
    assert!(said.contains("%0A     1x SELECT 100%0A"), "{said}");

    // In a repository that holds the package in a folder.
    let package = env::current_dir().unwrap();
    let root = package.parent().unwrap().to_str().unwrap();
    let said = printed(&[("GITHUB_ACTIONS", "true"), ("GITHUB_WORKSPACE", root)]);
    let folder = package.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&annotation(&format!("{folder}/tests/testing/github.rs"))), "{said}");

    assert!(!printed(&[]).contains("::error"));
}
