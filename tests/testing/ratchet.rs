//! What a suite needs, held against a file. The suite is this very program, run again on its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use redis::aio::ConnectionLike;
use redis::{AsyncCommands, Cmd, Pipeline, RedisFuture, Value};
use request_budget::db::Query;
use request_budget::redis::Connection;
use request_budget::testing::Ratchet;
use request_budget::{Budget, BudgetExt, BudgetLayer, Cut, ExternalExt};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::failure;

const TIMES: &str = "REQUEST_BUDGET_TEST_TIMES";

/// A suite without anything that counts statements; does nothing in an ordinary run.
#[tokio::test]
async fn blind_suite() {
    let Ok(calls) = env::var(TIMES) else { return };
    let work = async {
        for _ in 0..calls.parse().unwrap() {
            async {}.external("payments").await.unwrap();
        }
    };
    work.budgeted("pay", Budget::new()).await.unwrap();
}

/// A cache that has nothing.
struct Empty;

impl ConnectionLike for Empty {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async { Ok(Value::Nil) })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move { Ok(vec![Value::Nil; count]) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// A suite that asks a cache and nothing else; does nothing in an ordinary run.
#[tokio::test]
async fn cached_suite() {
    let Ok(times) = env::var(TIMES) else { return };
    let mut cache = Connection::new(Empty);
    let work = async {
        for id in 0..times.parse().unwrap() {
            let user: Option<String> = cache.get(format!("user:{id}")).await.unwrap();
            assert_eq!(user, None);
        }
        cache.get::<_, Option<String>>("settings").await.unwrap();
    };
    work.budgeted("greet", Budget::new()).await.unwrap();
}

/// A suite of two tests, which uses as much as the environment says; does nothing in an ordinary
/// run.
#[tokio::test]
async fn suite() {
    let Ok(times) = env::var(TIMES) else { return };
    let times: u64 = times.parse().unwrap();
    let web = Budget::new().queries(1);
    let exempt = web.clone().exempt("https://example.org/issues/7", Budget::new().queries(50));
    let layer = BudgetLayer::new(web).with_names(|_: &http::Request<()>| "GET /posts");
    let service = ServiceBuilder::new().layer(layer).service(service_fn(|_| async {
        execute("SELECT 1", 1).await.unwrap();
        Ok::<_, std::io::Error>(http::Response::new(String::new()))
    }));
    drop(service.oneshot(http::Request::new(())).await.unwrap());
    let odd = "send \"all\"\tinvoices\u{202e}\r\nof 'ö' #[1] = \"\"\"";
    execute("SELECT 2", times).budgeted(odd, exempt).await.unwrap().unwrap();
    if times < 9 {
        async {}.budgeted("idle", Budget::new()).await.unwrap();
    }
}

async fn execute(text: &str, times: u64) -> Result<(), Cut> {
    drop(std::hint::black_box(vec![0_u8; 100_000]));
    for _ in 0..times {
        drop(Query::start(text)?);
    }
    Ok(())
}

/// Runs the suite in a process of its own.
fn run(folder: &Path, times: u64) {
    run_suite("ratchet::suite", folder, times);
}

fn run_suite(suite: &str, folder: &Path, times: u64) {
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", suite])
        .env(TIMES, times.to_string())
        .env("REQUEST_BUDGET_RATCHET", folder)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_later_run_that_needs_more_fails() {
    let root = empty_folder("runs");
    let runs = ["first", "second", "third"].map(|name| root.join(name));
    let file = root.join("budgets.toml");
    let ratchet = |folder: &Path| Ratchet::new(&file).with_folder(folder);

    fs::create_dir_all(&runs[0]).unwrap();
    let said = failure(|| drop(ratchet(&runs[0]).check()));
    assert!(said.starts_with("nothing was noted in "), "{said}");

    // Processes at the same time, and one that was killed in the middle of a line.
    std::thread::scope(|scope| {
        for times in [2, 3, 1] {
            let folder = &runs[0];
            scope.spawn(move || run(folder, times));
        }
    });
    fs::write(runs[0].join("killed.usage"), b"{ name = \"send \xc3").unwrap();
    let said = failure(|| drop(ratchet(&runs[0]).check()));
    let said = said.replace(&*file.to_string_lossy(), "budgets.toml");
    insta::assert_snapshot!("not_in_the_file_yet", said);
    ratchet(&runs[0]).update().unwrap();
    insta::assert_snapshot!("file", fs::read_to_string(&file).unwrap());
    assert!(ratchet(&runs[0]).check().is_within());
    // One more is more.
    let written = fs::read_to_string(&file).unwrap();
    fs::write(&file, written.replace("queries = 3", "queries = 2")).unwrap();
    assert!(!ratchet(&runs[0]).compare().unwrap().is_within());
    fs::write(&file, written).unwrap();

    run(&runs[1], 9);
    let said = failure(|| drop(ratchet(&runs[1]).check()));
    insta::assert_snapshot!("needs_more", said.replace(&*file.to_string_lossy(), "budgets.toml"));
    ratchet(&runs[1]).update().unwrap();

    run(&runs[2], 4);
    let comparison = ratchet(&runs[2]).check();
    assert!(comparison.is_within() && comparison.can_be_lowered());
    let said = comparison.to_string().replace(&*file.to_string_lossy(), "budgets.toml");
    insta::assert_snapshot!("can_be_lowered", said);
    ratchet(&runs[2]).update().unwrap();
    let comparison = ratchet(&runs[2]).check();
    assert!(!comparison.can_be_lowered());
    // Listed all the same.
    let said = comparison.to_string();
    assert!(said.ends_with("  exempt  https://example.org/issues/7\n"), "{said}");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn calls_to_a_cache_are_held_as_queries_are() {
    let root = empty_folder("cached");
    let file = root.join("budgets.toml");
    let [few, many, one] = ["few", "many", "one"].map(|name| root.join(name));
    let ratchet = |folder: &Path| Ratchet::new(&file).with_folder(folder);
    run_suite("ratchet::cached_suite", &few, 2);
    ratchet(&few).update().unwrap();
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.ends_with("[greet]\ncache_calls = 3\nrepeated_cache_calls = 2\n"), "{written}");
    assert!(ratchet(&few).check().is_within());

    run_suite("ratchet::cached_suite", &many, 5);
    let said = failure(|| drop(ratchet(&many).check()));
    let rows: Vec<Vec<_>> =
        said.lines().skip(3).take(2).map(|row| row.split_whitespace().collect()).collect();
    let more = |what, allowed, needed| vec!["greet", what, allowed, needed, "needs", "more"];
    assert_eq!(
        rows,
        [more("cache_calls", "3", "6"), more("repeated_cache_calls", "2", "5")],
        "{said}"
    );

    // Once is not repeated.
    run_suite("ratchet::cached_suite", &one, 1);
    assert!(ratchet(&one).check().can_be_lowered());
    ratchet(&one).update().unwrap();
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.ends_with("[greet]\ncache_calls = 2\n"), "{written}");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn memory_is_compared_when_asked_for_and_may_vary() {
    let root = empty_folder("memory");
    let file = root.join("budgets.toml");
    let folder = root.join("run");
    run(&folder, 2);
    let ratchet = Ratchet::new(&file).with_folder(&folder);
    ratchet.update().unwrap();
    assert!(!fs::read_to_string(&file).unwrap().contains("memory"));
    let memory = ratchet.clone().with_memory(50);
    memory.update().unwrap();
    assert!(memory.check().is_within() && !memory.check().can_be_lowered());

    let noted = fs::read_to_string(&file).unwrap();
    assert!(noted.contains("memory = 100000\n"), "{noted}");
    let changed = |change: fn(u64) -> u64| {
        let line = |line: &str| match line.strip_prefix("memory = ") {
            Some(bytes) => format!("memory = {}\n", change(bytes.parse().unwrap())),
            None => format!("{line}\n"),
        };
        fs::write(&file, noted.lines().map(line).collect::<String>()).unwrap();
    };
    changed(|bytes| bytes * 7 / 10);
    assert!(memory.check().is_within(), "half as much again is allowed");
    changed(|bytes| bytes * 6 / 10);
    let said = failure(|| drop(memory.check()));
    assert!(said.contains(" memory ") && said.contains(" needs more"), "{said}");
    assert!(ratchet.check().is_within(), "who does not ask for memory is not told");
    changed(|bytes| bytes * 2);
    assert!(memory.check().can_be_lowered());
    fs::remove_dir_all(&root).unwrap();
}

/// A folder of this process.
fn empty_folder(name: &str) -> PathBuf {
    let name = format!("request-budget-ratchet-{}-{name}", std::process::id());
    let folder = env::temp_dir().join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn nothing_noted_is_a_failure() {
    let said = failure(|| drop(Ratchet::new("nowhere.toml").check()));
    let expected =
        "nothing was noted: REQUEST_BUDGET_RATCHET names no folder; set it for the whole suite";
    assert_eq!(said, expected);
}

#[test]
fn zeros_that_nobody_counted_are_a_failure() {
    let root = empty_folder("blind");
    let file = root.join("budgets.toml");
    let [nothing, calls] = ["nothing", "calls"].map(|name| root.join(name));
    run_suite("ratchet::blind_suite", &nothing, 0);
    let ratchet = Ratchet::new(&file).with_folder(&nothing);
    let said = failure(|| drop(ratchet.check()));
    let none = "no metered pool or client existed in any process of the suite";
    assert_eq!(said, format!("nothing was counted: {none}"));
    assert_eq!(ratchet.update().unwrap_err().to_string(), said);

    // Others' numbers are held, and what is missing is said.
    run_suite("ratchet::blind_suite", &calls, 2);
    let ratchet = Ratchet::new(&file).with_folder(&calls);
    ratchet.update().unwrap();
    let said = ratchet.check().to_string();
    assert!(said.ends_with(&format!("\nstatements are not among it: {none}\n")), "{said}");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_or_written_is_named_and_stays_as_it_was() {
    let root = empty_folder("broken");
    let file = root.join("budgets.toml");
    let folder = root.join("run");
    run(&folder, 2);
    let ratchet = Ratchet::new(&file).with_folder(&folder);
    for broken in ["<<<<<<< HEAD\n[idle]\n", "[idle]\nqueries = \"many\"\n", "[idle]\nquerys = 1\n"]
    {
        fs::write(&file, broken).unwrap();
        let said = failure(|| drop(ratchet.check()));
        assert!(
            said.starts_with(&format!("{}: TOML parse error at line ", file.display())),
            "{said}"
        );
        ratchet.update().unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
    fs::write(&file, "").unwrap();
    let mut permissions = fs::metadata(&file).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&file, permissions).unwrap();
    let error = ratchet.update().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(error.to_string(), format!("{}: is read-only", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "");

    let nowhere = Ratchet::new(root.join("no/such/folder.toml")).with_folder(&folder);
    assert!(nowhere.update().unwrap_err().to_string().contains("no/such/folder.toml: "));
    let unread = Ratchet::new(&file).with_folder(root.join("none"));
    assert!(unread.compare().unwrap_err().to_string().contains("/none: "));
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn several_that_write_at_once_leave_a_whole_file() {
    let root = empty_folder("at-once");
    let file = root.join("budgets.toml");
    let folder = root.join("run");
    run(&folder, 2);
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut updater = Command::new(env::current_exe().unwrap());
            updater.args(["--exact", "ratchet::updater"]).env(UPDATED, &file);
            updater.env("REQUEST_BUDGET_RATCHET", &folder).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(Ratchet::new(&file).with_folder(&folder).check().is_within());
    let names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    fs::remove_dir_all(&root).unwrap();
}

const UPDATED: &str = "REQUEST_BUDGET_TEST_UPDATED";

/// Writes the file that it is told; does nothing in an ordinary run.
#[test]
fn updater() {
    let Some(file) = env::var_os(UPDATED) else { return };
    for _ in 0..50 {
        Ratchet::new(&file).update().unwrap();
    }
}
