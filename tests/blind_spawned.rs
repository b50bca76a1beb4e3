//! Limits on statements of work whose statements run in a task that it has not carried along. One
//! test only: a name is reported once a process.

mod health;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use request_budget::db::{self, Query};
use request_budget::{Budget, BudgetExt, BudgetLayer, Limit, task};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;
use tracing::Level;

fn execute() {
    drop(Query::start("SELECT 1").expect("nothing is refused"));
}

async fn three() -> &'static str {
    for _ in 0..3 {
        drop(Query::start("SELECT 1"));
        tokio::task::yield_now().await;
    }
    "done"
}

async fn spawned(request: Request, next: Next) -> Response {
    tokio::spawn(next.run(request)).await.expect("it does not panic")
}

async fn ask(app: Router) -> StatusCode {
    let request = Request::get("/").body(Body::empty()).expect("it is a good request");
    let answer = app.oneshot(request).await.expect("routers do not fail");
    let status = answer.status();
    to_bytes(answer.into_body(), 1_000).await.expect("it is all there");
    status
}

/// Runs work of this name in a task of its own.
async fn run(name: &'static str, budget: &Budget, work: impl Future<Output = ()> + Send + 'static) {
    let work = tokio::spawn(work.budgeted(name, budget.clone()));
    work.await.expect("it does not panic").expect("nothing is crossed");
}

async fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future).await.expect("it does not panic");
}

/// An actor: a task that executes a statement for each message, and answers.
fn actor() -> mpsc::Sender<oneshot::Sender<()>> {
    let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
    tokio::spawn(async move {
        while let Some(answer) = asked.recv().await {
            execute();
            answer.send(()).expect("it is waited for");
        }
    });
    ask
}

async fn tick(actor: mpsc::Sender<oneshot::Sender<()>>) {
    let (answer, answered) = oneshot::channel();
    actor.send(answer).await.expect("it lives");
    answered.await.expect("it answers");
}

#[tokio::test]
async fn work_whose_statements_run_elsewhere_is_reported_once_a_name() {
    let health = health::listen();
    let budget = Budget::new().queries(Limit::hard(2)).rows(9).total_time(Duration::MAX);
    let routes = || Router::new().route("/", get(three));
    let layer = || BudgetLayer::new(budget.clone());

    // Tasks that were there before are those of others: older than the work's, or known by now.
    let older = actor();
    run("older", &budget, tick(older.clone())).await;
    let known = actor();
    tick(known.clone()).await;
    tick(known.clone()).budgeted("known", budget.clone()).await.expect("nothing is crossed");
    // The task of the work, where it is in no unit of work.
    let same = budget.clone();
    spawn(async {
        let mut work = Box::pin(async { tokio::task::yield_now().await }.budgeted("same", same));
        assert!(futures_util::poll!(&mut work).is_pending());
        execute();
        work.await.expect("nothing is crossed");
    })
    .await;
    // What is carried along, in a unit of its own, beside statements of the work's own, or not
    // limited.
    let cut = ask(routes().layer(layer()).layer(from_fn(spawned))).await;
    assert_eq!(cut, StatusCode::SERVICE_UNAVAILABLE, "the layer is in the task that executes");
    run("carried", &budget, async { task::spawn(async { execute() }).await.expect("no panic") })
        .await;
    let unit = async { execute() }.budgeted("unit", Budget::new());
    run("nested", &budget, spawn(async { unit.await.expect("no limit") })).await;
    run("free", &Budget::new().external_calls(1), spawn(async { execute() })).await;
    let beside = async {
        execute();
        spawn(async { execute() }).await;
    };
    run("beside", &budget, beside).await;
    assert_eq!(health.heard(), []);

    let said = |names: &str| {
        let text = format!(
            "a budget limits {names}, but the work executed no statement itself, while a task that \
             was spawned meanwhile executed some in no unit of work: if they are part of it, these \
             limits never see them; carry the task along, `request_budget::task::spawn` or \
             `.in_current_budget()`"
        );
        (Level::WARN, names.to_owned(), text)
    };
    for _ in 0..2 {
        let status = ask(routes().layer(from_fn(spawned)).layer(layer())).await;
        assert_eq!(status, StatusCode::OK, "nothing counts");
        assert_eq!(health.heard(), [said("queries, rows")]);
    }
    // Each name once, whoever counts the statements.
    let roomy = Budget::new().queries(9);
    for _ in 0..2 {
        run("job", &roomy, spawn(async { execute() })).await;
        run("told", &roomy, spawn(async { db::executed("SELECT 1", Duration::ZERO, 0) })).await;
        let blocking = async { tokio::task::spawn_blocking(execute).await.expect("no panic") };
        run("blocking", &roomy, blocking).await;
    }
    assert_eq!(health.heard()[1..], [said("queries"), said("queries"), said("queries")]);
}
