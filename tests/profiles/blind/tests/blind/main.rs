//! What a test cannot see fails it, or is named on standard error, however the test was built.
//!
//! `tests/profiles/run` builds this program in several ways and strips it step by step. How much is
//! left is told by a variable, since what the library makes of it is what is tested.

mod elsewhere;
mod metered;
mod plain;

use std::any::Any;
use std::env::{self, VarError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use request_budget::sqlx::Pool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Executor, Sqlite, SqlitePool};

/// What this program knows of its own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Names of functions, files and lines.
    Lines,
    /// Names of functions, as with `debug = 0`.
    Names,
    /// As with `strip = true`.
    Nothing,
}

fn known() -> Known {
    match env::var("REQUEST_BUDGET_PROFILE_KNOWN").as_deref() {
        Ok("lines") | Err(VarError::NotPresent) => Known::Lines,
        Ok("names") => Known::Names,
        Ok("nothing") => Known::Nothing,
        other => panic!("REQUEST_BUDGET_PROFILE_KNOWN is to be lines, names or nothing: {other:?}"),
    }
}

/// What a failing assertion says.
#[track_caller]
fn failure(assertion: impl FnOnce()) -> String {
    let said = |panic: Box<dyn Any + Send>| *panic.downcast::<String>().expect("a message");
    catch_unwind(AssertUnwindSafe(assertion)).map_err(said).expect_err("it passes")
}

#[track_caller]
fn assert_says(said: &str, words: &str) {
    assert!(said.contains(words), "{words:?} is not in:\n{said}");
}

/// Demands that a failure names this line of a file of these tests, or says why it names none.
#[track_caller]
fn assert_place(said: &str, file: &str, line: u32) {
    match known() {
        Known::Lines => {
            let place = format!("tests/blind/{file}:{line}");
            // With how often after it, where there are several.
            let is_named = [" (", "\n"].iter().any(|end| said.contains(&format!("{place}{end}")));
            assert!(is_named, "{place} is not in:\n{said}");
        }
        Known::Names | Known::Nothing => {
            assert_says(said, "(place unknown: no debug info; set `debug = \"line-tables-only\"`");
            assert!(!said.contains(".rs:"), "{said}");
        }
    }
}

/// Runs this in a process of its own, and returns what it writes to standard error; `None` in that
/// process. The harness would lose the warnings of a test that passes.
async fn warnings(test: &str, wiring: impl Future<Output = ()>) -> Option<String> {
    const ALONE: &str = "REQUEST_BUDGET_PROFILE_WIRING";
    if env::var(ALONE).is_ok_and(|alone| alone == test) {
        wiring.await;
        return None;
    }
    let mut alone = Command::new(env::current_exe().expect("it runs"));
    let output = alone.args(["--exact", test]).env(ALONE, test).output().expect("it runs");
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8(output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{test}: {out}");
    Some(said.expect("text"))
}

const STRIPPED: &str = "because the program is stripped of its symbols";

/// Demands that these words are written to standard error. A program that was stripped says that it
/// cannot know.
async fn assert_warns(test: &str, words: &str, wiring: impl Future<Output = ()>) {
    let Some(said) = warnings(test, wiring).await else { return };
    match known() {
        Known::Lines | Known::Names => assert_says(&said, words),
        Known::Nothing => {
            assert_says(&said, STRIPPED);
            assert_says(&said, "`strip = false`");
        }
    }
}

async fn plain_logging(level: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().log_statements(level.parse().expect("a level"));
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options);
    pool.await.expect("it needs no server")
}

async fn metered() -> Pool<Sqlite> {
    Pool::from(plain_logging("debug").await)
}

async fn query<'a>(pool: impl Executor<'a, Database = Sqlite>) {
    pool.execute("SELECT 1").await.expect("a good statement");
}
