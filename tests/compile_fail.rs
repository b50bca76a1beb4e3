//! What is deliberately not there is missed by the compiler, in words that name the way out.
//!
//! Each wrong piece is compiled as part of this very file, behind a `cfg` that is set for it alone.
//! So nothing else is built anew, and what is right beside it is known to compile.
#![allow(unexpected_cfgs, reason = "set by the tests below, for one compilation each")]
#![allow(dead_code, reason = "it is only compiled")]

use std::env;
use std::process::Command;

use request_budget::sqlx::{BorrowedConnection, PgTransaction, Pool, PoolConnection};
use request_budget::{Budget, BudgetLayer};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgAdvisoryLock;
use sqlx::{PgConnection, PgPool, Postgres};
use tower::{Layer, Service};

async fn migrate(migrator: &Migrator, pool: &Pool<Postgres>) -> Result<(), MigrateError> {
    #[cfg(wrong = "acquire from a pool")]
    return migrator.run(pool).await;
    #[cfg(not(wrong = "acquire from a pool"))]
    migrator.run(pool.unmetered()).await
}

async fn acquire(mut connection: PoolConnection<Postgres>) {
    async fn from<'c>(_: impl sqlx::Acquire<'c, Database = Postgres>) {}

    #[cfg(wrong = "acquire from a connection")]
    from(&mut *connection).await;
    from(connection.unmetered()).await;
}

#[expect(clippy::needless_pass_by_value, reason = "the error would name a reference to it")]
fn pools(theirs: PgPool, ours: Pool<Postgres>) {
    fn metered(_: Pool<Postgres>) {}
    fn plain(_: &PgPool) {}

    #[cfg(wrong = "our pool for theirs")]
    plain(&ours);
    plain(ours.unmetered());
    #[cfg(wrong = "their pool for ours")]
    metered(theirs.clone());
    metered(theirs.into());
}

/// Helpers that take sqlx's own connection.
async fn helpers(mut tx: PgTransaction<'_>, connection: PoolConnection<Postgres>) {
    async fn save(connection: &mut PgConnection) {
        #[cfg(wrong = "a borrowed connection as an argument by value")]
        drop(sqlx::query("SELECT 1").execute(BorrowedConnection::new(connection)).await);
        drop(sqlx::query("SELECT 1").execute(&mut BorrowedConnection::new(connection)).await);
    }

    save(&mut tx).await;
    drop(PgAdvisoryLock::new("posts").acquire(connection).await);
}

/// A body of a response that stays on its thread.
fn on_one_thread() {
    fn is_service<S: Service<http::Request<()>>>(_: S) {}

    #[cfg(wrong = "a future that is not `Send`")]
    type Kept = std::rc::Rc<()>;
    #[cfg(not(wrong = "a future that is not `Send`"))]
    type Kept = std::sync::Arc<()>;

    let handler = |_: http::Request<()>| async {
        let kept = Kept::new(());
        tokio::task::yield_now().await;
        drop(kept);
        Ok::<_, std::convert::Infallible>(http::Response::new(axum::body::Body::empty()))
    };
    is_service(BudgetLayer::new(Budget::new()).layer(tower::service_fn(handler)));
}

/// Compiles this file with one wrong piece in it; what the compiler said, white space made even.
fn compile_with(wrong: &str) -> String {
    let exe = env::current_exe().expect("has a path");
    let profile_dir = exe.ancestors().nth(2).expect("TARGET/debug/deps/THIS");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["rustc", "--quiet", "--offline", "--color=never", "--test=compile_fail"]);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile_dir.parent().expect("is in the target directory"));
    cargo
        .args(["--", "--cfg", &format!("wrong={wrong:?}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would have build scripts run again that look at it.
    let of_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    let output = cargo.output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it compiles: {said}");
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_says(said: &str, expected: &[&str]) {
    for words in expected {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
}

#[test]
fn acquire_names_the_way_to_the_inner_pool() {
    for wrong in ["acquire from a pool", "acquire from a connection"] {
        assert_says(
            &compile_with(wrong),
            &[
                "error[E0277]: `sqlx::Acquire` is not implemented for `&",
                "pass `.unmetered()` of this pool or connection instead",
                "what runs on `.unmetered()` is not counted",
            ],
        );
    }
}

#[test]
fn neither_pool_passes_for_the_other() {
    assert_says(
        &compile_with("our pool for theirs"),
        &["error[E0308]", "expected `sqlx::Pool<Postgres>`, found `request_budget::sqlx::Pool<"],
    );
    assert_says(
        &compile_with("their pool for ours"),
        &[
            "error[E0308]",
            "expected `request_budget::sqlx::Pool<Postgres>`, found `sqlx::Pool<",
            // The way from theirs to ours.
            ".into()",
        ],
    );
}

#[test]
fn a_borrowed_connection_is_an_executor_by_reference() {
    assert_says(
        &compile_with("a borrowed connection as an argument by value"),
        &["error[E0277]", "Executor<'_>", "&mut BorrowedConnection"],
    );
}

#[test]
fn a_future_under_the_layer_is_one_of_any_thread_whatever_the_features() {
    assert_says(
        &compile_with("a future that is not `Send`"),
        &["the trait `Send` is not implemented for `Rc<()>`", "Future: Detachable"],
    );
}
