//! What goes on elsewhere: carried along, or left to itself.

use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use request_budget::report::Outcome;
use request_budget::{Budget, BudgetExt, BudgetLayer, Usage, task};
use tokio::task::{JoinHandle, JoinSet};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Ledger, call, ms, query};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawned_futures_and_closures_are_charged_to_who_began_them() {
    let ledger = Ledger::default();
    let work = async {
        let future = task::spawn(async { query("SELECT 1").unwrap() });
        let closure = task::spawn_blocking(|| query("SELECT 2").unwrap());
        let thread = std::thread::spawn(task::carried(|| query("SELECT 3").unwrap()));
        let mut set = JoinSet::new();
        for _ in 0..3 {
            set.spawn(async { call().unwrap() }.in_current_budget());
        }
        set.spawn(async { call().unwrap() });
        set.join_all().await;
        future.await.unwrap();
        closure.await.unwrap();
        thread.join().unwrap();
        // Left to itself: nobody's.
        tokio::spawn(async { query("SELECT 4").unwrap() }).await.unwrap();
    };
    work.budgeted("job", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    let end = ledger.end();
    assert_eq!((end.usage.queries, end.usage.external_calls), (3, 3));
}

#[test]
fn a_closure_that_is_never_called_is_dropped_inside_its_work() {
    let (ledger, slot) = (Ledger::default(), Mutex::new(None));
    let work = async {
        let held = black_box(Vec::<u8>::with_capacity(2_000));
        *slot.lock().unwrap() = Some(task::carried(move || drop(held)));
        tokio::task::yield_now().await;
    };
    let mut work = pin!(work.budgeted("job", Budget::new()).with_reporter(ledger.clone()));
    let mut poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending());
    let drop_it = || drop(slot.lock().unwrap().take());
    std::thread::scope(|scope| scope.spawn(drop_it).join()).unwrap();
    assert!(poll().is_ready());
    let usage = ledger.end().usage;
    assert_eq!((usage.memory, usage.retained), (Some(2_000), Some(0)));
}

/// Sends a request to a handler that leaves a job running, and gives the job.
async fn leave_running(requests: &Ledger, jobs: &Ledger) -> JoinHandle<()> {
    let left = Arc::new(Mutex::new(None));
    let (keep, jobs) = (Arc::clone(&left), jobs.clone());
    let service = service_fn(move |_: Request<()>| {
        let (keep, jobs) = (Arc::clone(&keep), jobs.clone());
        async move {
            let mail = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                call().unwrap();
                call().unwrap();
            };
            let mail = mail.budgeted("send_mail", Budget::new().external_calls(1));
            let mail = mail.with_reporter(jobs);
            let handle = tokio::spawn(async { mail.await.unwrap() });
            *keep.lock().unwrap() = Some(handle);
            Ok::<_, std::convert::Infallible>(Response::new(Full::<bytes::Bytes>::from("ordered")))
        }
    });
    let layer = BudgetLayer::new(Budget::new().total_time(ms(500)))
        .with_names(|_: &Request<()>| "POST /orders")
        .with_reporter(requests.clone());
    let answer = layer.layer(service).oneshot(Request::new(())).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let handle = left.lock().unwrap().take();
    handle.unwrap()
}

#[tokio::test(start_paused = true)]
async fn work_left_running_keeps_its_own_account_and_says_who_began_it() {
    let (requests, jobs) = (Ledger::default(), Ledger::default());
    let job = leave_running(&requests, &jobs).await;
    assert_eq!((requests.outcomes(), jobs.outcomes()), (vec![Outcome::Ok], vec![]));
    job.await.unwrap();

    let end = jobs.end();
    assert_eq!(end.usage.external_calls, 2);
    assert_eq!(end.usage.total_time.as_secs(), 60);
    assert_eq!(end.begun_by.as_deref(), Some("POST /orders"));
    let [violation] = &jobs.violations()[..] else { panic!("one violation") };
    assert_eq!(violation.begun_by.as_deref(), Some("POST /orders"));
    let message =
        "send_mail, begun by POST /orders: 2 external calls, limit 1: call to \"payments\"";
    assert!(violation.to_string().starts_with(message), "{violation}");

    // The request has its own account, its own end, and nobody who began it.
    let end = requests.end();
    assert_eq!((end.usage.external_calls, end.begun_by), (0, None));
    assert_eq!(requests.messages(), [""; 0]);
}

#[tokio::test]
async fn who_began_it_is_told_by_where_it_is_made() {
    let ledger = Ledger::default();
    let made = |name: &'static str| {
        async { assert!(Usage::current().is_some()) }
            .budgeted(name, Budget::new())
            .with_reporter(ledger.clone())
    };
    let outside = made("outside");
    let work = async {
        outside.await.unwrap();
        made("inside").await.unwrap();
        // Made by the other task, where nothing runs.
        let spawned = ledger.clone();
        let later = async move {
            async {}.budgeted("later", Budget::new()).with_reporter(spawned).await.unwrap();
        };
        tokio::spawn(later).await.unwrap();
    };
    work.budgeted("request", Budget::new()).await.unwrap();
    let told: Vec<_> = ledger.ends().into_iter().map(|end| (end.work, end.begun_by)).collect();
    let by = |name: &str| Some(name.to_owned());
    assert_eq!(
        told,
        [
            ("outside".to_owned(), None),
            ("inside".to_owned(), by("request")),
            ("later".to_owned(), None),
        ]
    );
}
