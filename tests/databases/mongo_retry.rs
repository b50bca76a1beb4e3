//! Loops that repeat a MongoDB command past a hard limit: the cut ends them, and they block no
//! thread.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use request_budget::mongodb::Client;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetExt, BudgetLayer, Limit, Resource, Violation, task};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};

use crate::suite::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            ("mongodb_loops_end_with_the_cut_in_requests", |url| watched(url, Kind::Request)),
            ("mongodb_loops_end_with_the_cut_in_tasks", |url| watched(url, Kind::Task)),
            ("mongodb_loops_end_with_the_cut_in_children", |url| watched(url, Kind::Child)),
            ("mongodb_loops_end_with_the_cut_in_nested_work", |url| watched(url, Kind::Nested)),
        ],
    );
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Request,
    Task,
    /// A task that is charged to the work, which waits for it.
    Child,
    Nested,
}

/// The violations and the end of one unit of work.
#[derive(Clone, Default)]
struct Seen(Arc<Reported>);

#[derive(Default)]
struct Reported {
    violations: Mutex<Vec<Resource>>,
    end: Mutex<Option<(Outcome, u64)>>,
    has_ended: Notify,
}

impl Reporter for Seen {
    fn violation(&self, violation: &Violation) {
        self.0.violations.lock().expect("not poisoned").push(violation.resource);
    }

    fn finished(&self, report: &Report<'_>) {
        let end = (report.outcome(), report.usage().queries);
        assert_eq!(self.0.end.lock().expect("not poisoned").replace(end), None);
        self.0.has_ended.notify_one();
    }
}

const QUERIES: u64 = 5;

fn limits() -> [(Resource, Budget); 3] {
    let time = Duration::from_millis(100);
    [
        (Resource::Queries, Budget::new().queries(Limit::hard(QUERIES))),
        (Resource::QueryTime, Budget::new().query_time(Limit::hard(time))),
        (Resource::TotalTime, Budget::new().total_time(time)),
    ]
}

/// Two loops at once for each limit, on one thread; another thread notices if they block it.
fn watched(url: &str, kind: Kind) {
    let (url, (done, end)) = (url.to_owned(), mpsc::channel());
    let worker = thread::spawn(move || {
        with_runtime(0, async {
            let client = Client::with_uri_str(&url).await.expect("connects");
            let posts = client.database("request_budget").collection("nobody_inserts");
            for (resource, budget) in limits() {
                let one = || cut(kind, resource, budget.clone(), posts.clone());
                tokio::join!(one(), one());
            }
        });
        done.send(()).expect("the test waits");
    });
    match end.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{kind:?}: the thread is blocked"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            worker.join().expect("the test does not panic");
        }
    }
}

/// Repeats a query until it finds a document that does not exist.
async fn retry(posts: &Collection<Document>) {
    while !matches!(posts.find_one(doc! { "_id": 1 }).await, Ok(Some(_))) {}
}

async fn cut(kind: Kind, resource: Resource, budget: Budget, posts: Collection<Document>) {
    let seen = Seen::default();
    let mut child = None;
    match kind {
        Kind::Request => {
            let service = service_fn(|_: Request<()>| {
                let posts = posts.clone();
                async move {
                    retry(&posts).await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                }
            });
            let layered = BudgetLayer::new(budget).with_reporter(seen.clone()).layer(service);
            let answer = layered.oneshot(Request::new(())).await.expect("it cannot fail");
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        Kind::Task => {
            let work = retry(&posts).budgeted("task", budget).with_reporter(seen.clone());
            assert_eq!(work.await.expect_err("is cut").violation().resource, resource);
        }
        Kind::Child => {
            let posts = posts.clone();
            let work = async {
                let handle = task::spawn(async move { retry(&posts).await });
                child = Some(handle.abort_handle());
                handle.await.expect("does not panic");
            };
            let work = work.budgeted("parent", budget).with_reporter(seen.clone());
            assert_eq!(work.await.expect_err("is cut").violation().resource, resource);
        }
        Kind::Nested => {
            let work = async { retry(&posts).budgeted("inner", Budget::new()).await };
            let work = work.budgeted("outer", budget).with_reporter(seen.clone());
            assert_eq!(work.await.map(drop).expect_err("is cut").violation().resource, resource);
        }
    }
    // The answer to a request does not wait for its last command, the report does.
    seen.0.has_ended.notified().await;
    let (outcome, queries) = seen.0.end.lock().expect("not poisoned").expect("it has ended");
    assert_eq!(*seen.0.violations.lock().expect("not poisoned"), [resource], "{kind:?}");
    assert_eq!(outcome, Outcome::Cut, "{kind:?}, {resource:?}");
    if resource == Resource::Queries {
        // The one that crosses the limit is sent, and no other.
        assert_eq!(queries, QUERIES + 1, "{kind:?}");
    }
    // A child is not ended with its parent; on the same thread, others get their answers beside it.
    if let Some(child) = child {
        posts.find_one(doc! { "_id": 1 }).await.expect("the server answers");
        assert!(!child.is_finished());
        child.abort();
    }
}
