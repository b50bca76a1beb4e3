//! What a suite needs, held against a file. The suite is this very program, run again on its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use request_budget::db::Query;
use request_budget::testing::Ratchet;
use request_budget::{Budget, BudgetExt, BudgetLayer, Cut};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::failure;

const TIMES: &str = "REQUEST_BUDGET_TEST_TIMES";

/// A suite of two tests, which uses as much as the environment says; does nothing in an ordinary run.
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
    execute("SELECT 2", times).budgeted("send \"all\"\tinvoices", exempt).await.unwrap().unwrap();
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
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "ratchet::suite"])
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
    fs::write(runs[0].join("killed.usage"), "{ name = \"send").unwrap();
    let said = failure(|| drop(ratchet(&runs[0]).check()));
    let said = said.replace(&*file.to_string_lossy(), "budgets.toml");
    insta::assert_snapshot!("not_in_the_file_yet", said);
    ratchet(&runs[0]).update().unwrap();
    insta::assert_snapshot!("file", fs::read_to_string(&file).unwrap());
    assert!(ratchet(&runs[0]).check().is_within());

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
    assert!(!ratchet(&runs[2]).check().can_be_lowered());
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
