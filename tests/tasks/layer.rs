//! The layer for runners built on tower.

use std::future::{Ready, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use request_budget::report::{Attributes, Outcome};
use request_budget::{Budget, BudgetExt, Cut, Limit, Resource, TaskBudgetLayer, Usage};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::support::{Ledger, call, ms, pass, query};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Job {
    Mail { id: u64, attempt: u32 },
    Report,
}

fn name(job: &Job) -> &'static str {
    match job {
        Job::Mail { .. } => "mail",
        Job::Report => "report",
    }
}

fn describe(job: &Job) -> Attributes {
    match job {
        Job::Mail { id, attempt } => Attributes::new().with("job", id).with("attempt", attempt),
        Job::Report => Attributes::new(),
    }
}

async fn handle(job: Job) -> Result<u32, BoxError> {
    query("SELECT 1")?;
    query("SELECT 2")?;
    match job {
        Job::Mail { id: 0, .. } => Err("no such address".into()),
        Job::Mail { attempt: 1, .. } => pending().await,
        _ => Ok(7),
    }
}

fn policy(job: &Job) -> Budget {
    match job {
        Job::Mail { .. } => Budget::new().queries(1).total_time(ms(50)),
        Job::Report => Budget::new().queries(100),
    }
}

#[tokio::test(start_paused = true)]
async fn name_budget_and_attributes_are_chosen_by_the_job() {
    let ledger = Ledger::default();
    let layer =
        TaskBudgetLayer::new(name, policy).with_attributes(describe).with_reporter(ledger.clone());
    let mut service = layer.layer(service_fn(handle));
    let mut run = async |job| service.ready().await.unwrap().call(job).await;
    assert_eq!(run(Job::Report).await.unwrap(), 7);
    assert_eq!(run(Job::Mail { id: 3, attempt: 2 }).await.unwrap(), 7);
    let error = run(Job::Mail { id: 0, attempt: 2 }).await.unwrap_err();
    assert_eq!(error.to_string(), "no such address");
    let error = run(Job::Mail { id: 4, attempt: 1 }).await.unwrap_err();
    let cut = error.downcast_ref::<Cut>().unwrap().violation();
    assert_eq!((cut.resource, cut.work.as_str()), (Resource::TotalTime, "mail"));
    assert_eq!(cut.attributes, Attributes::new().with("job", 4).with("attempt", 1));

    let told: Vec<_> =
        ledger.ends().into_iter().map(|end| (end.attributes.to_string(), end.outcome)).collect();
    assert_eq!(
        told,
        [
            (String::new(), Outcome::Ok),
            ("job=3 attempt=2".to_owned(), Outcome::Ok),
            ("job=0 attempt=2".to_owned(), Outcome::Error),
            ("job=4 attempt=1".to_owned(), Outcome::Cut),
        ]
    );
    let messages = ledger.messages();
    assert!(
        messages[0].starts_with("mail (job=3 attempt=2): 2 queries, limit 1: "),
        "{messages:?}"
    );
    assert!(messages[3].starts_with("mail (job=4 attempt=1): 50"), "{messages:?}");
    assert_eq!(messages.len(), 4);
}

/// An error of a service that knows of cuts.
#[derive(Debug, PartialEq)]
enum Failure {
    Cut(Cut),
}

impl From<Cut> for Failure {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

#[tokio::test]
async fn the_call_itself_is_inside_and_the_error_is_the_service_s_own() {
    let ledger = Ledger::default();
    let service = service_fn(|()| -> Ready<Result<(), Failure>> {
        assert!(call().is_ok());
        assert!(call().is_err());
        ready(Ok(()))
    });
    let budget = Budget::new().external_calls(Limit::hard(1));
    let layer = TaskBudgetLayer::new("job", budget).with_reporter(ledger.clone());
    let Err(Failure::Cut(cut)) = layer.layer(service).oneshot(()).await else { panic!("a cut") };
    assert_eq!(cut.violation().resource, Resource::ExternalCalls);
    assert_eq!(ledger.end().usage.external_calls, 1);
}

#[tokio::test]
async fn each_call_is_reported_once_however_it_ends() {
    let ledger = Ledger::default();
    let service = service_fn(|how: &'static str| {
        assert_ne!(how, "panics at once", "on purpose");
        async move {
            query("SELECT 1")?;
            match how {
                "panics" => panic!("on purpose"),
                "waits" => pending().await,
                _ => Ok::<_, BoxError>(()),
            }
        }
    });
    let layer = TaskBudgetLayer::new("job", Budget::new()).with_reporter(ledger.clone());
    let mut service = layer.layer(service);
    // Never polled.
    drop(service.call("ends"));
    let aborted = tokio::spawn(service.call("waits"));
    tokio::task::yield_now().await;
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());
    assert!(tokio::spawn(service.call("panics")).await.unwrap_err().is_panic());
    let at_once = catch_unwind(AssertUnwindSafe(|| drop(service.call("panics at once"))));
    assert!(at_once.is_err());
    assert_eq!(
        ledger.outcomes(),
        [Outcome::Cancelled, Outcome::Cancelled, Outcome::Panicked, Outcome::Panicked]
    );
    let queries: Vec<_> = ledger.ends().iter().map(|end| end.usage.queries).collect();
    assert_eq!(queries, [0, 1, 1, 0]);
    assert_eq!(Usage::current(), None);
}

#[tokio::test]
async fn a_panic_that_other_work_catches_is_none_of_that() {
    let ledger = Ledger::default();
    let layer = TaskBudgetLayer::new("inner", Budget::new()).with_reporter(ledger.clone());
    let inner = layer.layer(service_fn(|()| async {
        query("SELECT 1")?;
        panic!("on purpose");
        #[expect(unreachable_code, reason = "its type")]
        Ok::<_, BoxError>(())
    }));
    let outer = async {
        assert!(AssertUnwindSafe(inner.oneshot(())).catch_unwind().await.is_err());
        Ok::<_, BoxError>(())
    };
    outer.try_budgeted("outer", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(ledger.outcomes(), [Outcome::Panicked, Outcome::Ok]);
    let queries: Vec<_> = ledger.ends().iter().map(|end| end.usage.queries).collect();
    assert_eq!(queries, [1, 1]);
}

#[test]
fn readiness_is_the_inner_service_s() {
    struct Unready;

    impl Service<()> for Unready {
        type Response = ();
        type Error = BoxError;
        type Future = Ready<Result<(), BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Pending
        }

        fn call(&mut self, (): ()) -> Self::Future {
            panic!("not ready")
        }
    }

    let mut service = TaskBudgetLayer::new("job", Budget::new()).layer(Unready);
    assert!(service.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[tokio::test(start_paused = true)]
async fn around_retries_it_is_one_unit_of_work_and_inside_it_is_one_for_each() {
    /// Tries again, at once, what failed for the first time.
    #[derive(Clone)]
    struct Twice;

    impl<S> Layer<S> for Twice {
        type Service = tower::retry::Retry<Policy, S>;

        fn layer(&self, inner: S) -> Self::Service {
            tower::retry::Retry::new(Policy(1), inner)
        }
    }

    #[derive(Clone)]
    struct Policy(u32);

    impl<R: Copy, T, E> tower::retry::Policy<R, T, E> for Policy {
        type Future = Ready<()>;

        fn retry(&mut self, _: &mut R, result: &mut Result<T, E>) -> Option<Ready<()>> {
            self.0 = self.0.checked_sub(1).filter(|_| result.is_err())?;
            Some(ready(()))
        }

        fn clone_request(&mut self, request: &R) -> Option<R> {
            Some(*request)
        }
    }

    let fail = service_fn(|()| async {
        query("SELECT 1").unwrap();
        pass(ms(1));
        Err::<(), BoxError>("fails".into())
    });
    let (inside, around) = (Ledger::default(), Ledger::default());
    let layer =
        |ledger: &Ledger| TaskBudgetLayer::new("job", Budget::new()).with_reporter(ledger.clone());
    Twice.layer(layer(&inside).layer(fail)).oneshot(()).await.unwrap_err();
    layer(&around).layer(Twice.layer(fail)).oneshot(()).await.unwrap_err();
    let queries = |ledger: &Ledger| {
        ledger.ends().into_iter().map(|end| end.usage.queries).collect::<Vec<_>>()
    };
    assert_eq!((queries(&inside), queries(&around)), (vec![1, 1], vec![2]));
}
