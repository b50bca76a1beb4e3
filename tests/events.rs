//! The `tracing` events: their targets, levels and fields, and the span that they are in.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, StreamBody};
use request_budget::db::Query;
use request_budget::http::{QueueTime, ResponseBody};
use request_budget::report::{Attributes, Name, Outcome, Report, Reporter, fields};
use request_budget::{Budget, BudgetExt, BudgetLayer, ExternalExt, Limit, Violation};
use tower::{Layer, ServiceExt};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Span, Subscriber, info_span};
use tracing_subscriber::layer::{self, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// An event as a subscriber sees it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    target: String,
    level: Level,
    fields: BTreeMap<&'static str, Value>,
    /// The spans around it, from the outside in.
    spans: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Keeps the events of this library that are emitted on this thread.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Seen>>>);

impl Events {
    /// Listens until the guard is dropped.
    fn listen(most: LevelFilter) -> (Self, DefaultGuard) {
        let events = Self::default();
        let subscriber = tracing_subscriber::registry().with(most).with(events.clone());
        (events, tracing::subscriber::set_default(subscriber))
    }

    fn with_target(&self, target: &str) -> Vec<Seen> {
        let seen = self.0.lock().expect("nothing panics under this lock");
        seen.iter().filter(|event| event.target == target).cloned().collect()
    }

    fn violations(&self) -> Vec<Seen> {
        self.with_target("request_budget::violation")
    }

    fn usages(&self) -> Vec<Seen> {
        self.with_target("request_budget::usage")
    }

    fn health(&self) -> Vec<Seen> {
        self.with_target("request_budget::health")
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> layer::Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        if !event.metadata().target().starts_with("request_budget") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let seen = Seen {
            target: event.metadata().target().to_owned(),
            level: *event.metadata().level(),
            fields: fields.0,
            spans: scope.map(|span| span.name()).collect(),
        };
        self.0.lock().expect("nothing panics under this lock").push(seen);
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, Value>);

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}").as_str().into());
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Lets time pass on the paused clock, within a poll.
fn pass(time: Duration) {
    let _ = tokio::time::advance(time).now_or_never();
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The body of an answer that is ready at once.
fn body<B>(budget: Budget, body: B) -> ResponseBody<B>
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let mut body = Some(body);
    let service = tower::service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(body.take().expect("called once"))))
    });
    let answer = BudgetLayer::new(budget).layer(service).oneshot(Request::new(()));
    answer.now_or_never().expect("ready").expect("infallible").into_body()
}

#[tokio::test(start_paused = true)]
async fn a_soft_violation_is_one_warning_with_all_that_is_known() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = async {
        for _ in 0..3 {
            async { pass(ms(2)) }.external("payments").await.unwrap();
        }
    };
    work.budgeted("order", Budget::new().external_calls(1)).await.unwrap();
    let message = "order: 2 external calls, limit 1: call to \"payments\", 2 times, 2ms in all";
    let expected = Seen {
        target: fields::VIOLATION.to_owned(),
        level: Level::WARN,
        fields: BTreeMap::from([
            (fields::RESOURCE, "external_calls".into()),
            (fields::SEVERITY, "soft".into()),
            (fields::LIMIT, 1.into()),
            (fields::OBSERVED, 2.into()),
            (fields::UNIT, "count".into()),
            (fields::WORK, "order".into()),
            (fields::EXTERNAL, "payments".into()),
            (fields::TIMES, 2.into()),
            ("message", message.into()),
        ]),
        spans: vec![],
    };
    assert_eq!(events.violations(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_hard_violation_is_one_error_with_all_that_is_known() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = pending::<()>().budgeted("order", Budget::new().total_time(ms(1_500)));
    work.await.unwrap_err();
    let expected = Seen {
        target: fields::VIOLATION.to_owned(),
        level: Level::ERROR,
        fields: BTreeMap::from([
            (fields::RESOURCE, "total_time".into()),
            (fields::SEVERITY, "hard".into()),
            (fields::LIMIT, 1_500_000.into()),
            (fields::OBSERVED, 1_500_000.into()),
            (fields::UNIT, "us".into()),
            (fields::WORK, "order".into()),
            (fields::CAUSE, "own_code".into()),
            ("message", "order: 1.5s in total, limit 1.5s: own code".into()),
        ]),
        spans: vec![],
    };
    assert_eq!(events.violations(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_violation_by_statements_names_the_one_that_ran_most() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = async {
        for statement in ["SELECT 1", "SELECT 2", "SELECT 2"] {
            drop(Query::start(statement));
        }
    };
    work.budgeted("report", Budget::new().queries(2)).await.unwrap();
    let [seen] = <[Seen; 1]>::try_from(events.violations()).unwrap();
    assert_eq!(seen.fields[fields::STATEMENT], "SELECT 2".into());
    assert_eq!(seen.fields[fields::TIMES], 2.into());
    assert_eq!(seen.fields.get(fields::EXTERNAL), None);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_given_as_such() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let body = body(Budget::new().response_bytes(3), Full::from("12345"));
    body.collect().await.unwrap();
    let [seen] = <[Seen; 1]>::try_from(events.violations()).unwrap();
    assert_eq!(seen.fields[fields::UNIT], "bytes".into());
    assert_eq!(
        (&seen.fields[fields::LIMIT], &seen.fields[fields::OBSERVED]),
        (&3.into(), &5.into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_violation_is_inside_the_innermost_span_of_its_work_and_names_it() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = async {
        let _span = info_span!("charge_card").entered();
        drop(ready(()).external("payments").now_or_never());
    };
    let span = info_span!("request");
    let mut work = Box::pin(work.budgeted("order", Budget::new().external_calls(0)));
    assert!(span.in_scope(|| poll_once(work.as_mut())).is_ready());
    let [seen] = <[Seen; 1]>::try_from(events.violations()).unwrap();
    assert_eq!(seen.spans, ["request", "charge_card"]);
    assert_eq!(seen.fields[fields::PLACE], "charge_card".into());
    let [usage] = <[Seen; 1]>::try_from(events.usages()).unwrap();
    assert_eq!(usage.spans, ["request"]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_up_outside_its_span_is_inside_it_all_the_same() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    for around in [Span::none(), info_span!("connection")] {
        let span = info_span!("request");
        let budget = Budget::new().slow_request(ms(100));
        let body = span.in_scope(|| body(budget, Full::from("half of it")));
        drop(span);
        pass(ms(200));
        around.in_scope(|| drop(body)); // by the server, which knows nothing of our spans
    }
    let (violations, usages) = (events.violations(), events.usages());
    assert_eq!((violations.len(), usages.len()), (2, 2));
    for violation in violations {
        assert_eq!(violation.fields[fields::RESOURCE], "slow_request".into());
        assert_eq!(violation.spans, ["request"]);
    }
    for usage in usages {
        assert_eq!(usage.fields[fields::OUTCOME], "cancelled".into());
        assert_eq!(usage.spans, ["request"]);
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_began_outside_every_span_reports_outside_them() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    ready(()).budgeted("order", Budget::new()).await.unwrap();
    assert_eq!(events.usages()[0].spans, [""; 0]);
    assert_eq!(events.usages()[0].fields.get(fields::PLACE), None);
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is set").as_micros() as u64
}

#[tokio::test(start_paused = true)]
async fn which_run_it_was_and_who_began_it_are_in_both_events() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let run = Attributes::new().with("job", 7).with("queue", "high priority");
    let left_running = async { ready(()).external("mail").await.unwrap() };
    let mut left = None;
    let request = async {
        let budget = Budget::new().external_calls(0);
        left = Some(left_running.budgeted("send_mail", budget).with_attributes(run));
    };
    request.budgeted("POST /orders", Budget::new()).await.unwrap();
    left.unwrap().await.unwrap();

    let field = |seen: &Seen, name| match seen.fields.get(name) {
        Some(Value::Text(text)) => text.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let [violation] = <[Seen; 1]>::try_from(events.violations()).unwrap();
    let [request, job] = <[Seen; 2]>::try_from(events.usages()).unwrap();
    for seen in [&violation, &job] {
        assert_eq!(field(seen, fields::WORK), "send_mail");
        assert_eq!(field(seen, fields::ATTRIBUTES), r#"job=7 queue="high priority""#);
        assert_eq!(field(seen, fields::BEGUN_BY), "POST /orders");
        let title = r#"send_mail (job=7 queue="high priority"), begun by POST /orders: "#;
        assert!(field(seen, "message").starts_with(title), "{seen:?}");
    }
    assert_eq!(field(&request, fields::WORK), "POST /orders");
    for absent in [fields::ATTRIBUTES, fields::BEGUN_BY] {
        assert_eq!(request.fields.get(absent), None);
    }
}

#[tokio::test(start_paused = true)]
async fn usage_is_one_event_for_each_unit_of_work() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let before = unix_micros();
    let work = async {
        for rows in [2, 1] {
            let mut query = Query::start("SELECT 1").unwrap();
            pass(ms(3));
            query.add_rows(rows);
        }
        async { pass(ms(4)) }.external("payments").await.unwrap();
        pass(ms(5));
        Full::<Bytes>::from("12345")
    };
    let mut work = Some(work);
    let service = tower::service_fn(move |_: Request<()>| {
        let work = work.take().expect("called once");
        work.map(|body| Ok::<_, Infallible>(Response::new(body)))
    });
    let budget = Budget::new().poll_time(ms(1)).external_calls(0);
    let service = BudgetLayer::new(budget).layer(service);
    let answer = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(events.usages(), []);
    answer.into_body().collect().await.unwrap();

    let message = "GET (no route): ";
    let [mut seen] = <[Seen; 1]>::try_from(events.usages()).unwrap();
    let Some(Value::Text(said)) = seen.fields.remove("message") else { panic!("a message") };
    assert!(said.starts_with(message) && said.contains("15ms in total"), "{said}");
    let Some(Value::Number(start)) = seen.fields.remove(fields::START) else { panic!("a start") };
    // The clock of the work is paused and moved by hand, by 15 ms.
    assert!((before - 15_000..=unix_micros()).contains(&start), "{start}");
    let expected = Seen {
        target: fields::USAGE.to_owned(),
        level: Level::DEBUG,
        // Memory is not there: this program has no counting allocator.
        fields: BTreeMap::from([
            (fields::WORK, "GET (no route)".into()),
            (fields::OUTCOME, "ok".into()),
            (fields::VIOLATIONS, 2.into()),
            (fields::QUERIES, 2.into()),
            (fields::REPEATED_QUERIES, 2.into()),
            (fields::WRITES, 0.into()),
            (fields::OBSERVED_QUERIES, 0.into()),
            (fields::ROWS, 3.into()),
            (fields::TRANSACTIONS, 0.into()),
            (fields::QUERY_TIME, 6_000.into()),
            (fields::SLOW_QUERY, 3_000.into()),
            (fields::CONNECTION_WAIT, 0.into()),
            (fields::UNMETERED, 0.into()),
            (fields::CACHE_CALLS, 0.into()),
            (fields::REPEATED_CACHE_CALLS, 0.into()),
            (fields::CACHE_TIME, 0.into()),
            (fields::EXTERNAL_CALLS, 1.into()),
            (fields::EXTERNAL_TIME, 4_000.into()),
            (fields::TOTAL_TIME, 15_000.into()),
            (fields::POLL_TIME, 15_000.into()),
            (fields::BUSY_TIME, 15_000.into()),
            (fields::RESPONSE_BYTES, 5.into()),
        ]),
        spans: vec![],
    };
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_measured_is_absent_and_not_zero() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    ready(()).budgeted("order", Budget::new()).await.unwrap();
    let [seen] = <[Seen; 1]>::try_from(events.usages()).unwrap();
    for absent in
        [fields::MEMORY, fields::ALLOCATED, fields::RETAINED, fields::POLL_TIME, fields::BUSY_TIME]
    {
        assert_eq!(seen.fields.get(absent), None, "{absent}");
    }
}

#[test]
fn the_time_in_the_queue_is_there_where_it_is_measured() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let service = tower::service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    let layer = BudgetLayer::new(Budget::new()).with_queue_time(QueueTime::Measured);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let request = Request::builder().header("x-request-start", now.to_string()).body(()).unwrap();
    drop(layer.layer(service).oneshot(request).now_or_never());
    let [seen] = <[Seen; 1]>::try_from(events.usages()).unwrap();
    assert!(matches!(seen.fields[fields::QUEUE_TIME], Value::Number(_)));
}

#[test]
fn each_outcome_has_its_name() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let budgeted = |name, budget| pending::<()>().budgeted(name, budget);
    ready(()).budgeted("a", Budget::new()).now_or_never().unwrap().unwrap();
    let cut = budgeted("b", Budget::new().total_time(Duration::ZERO));
    assert!(cut.now_or_never().unwrap().is_err());
    assert!(budgeted("c", Budget::new()).now_or_never().is_none());
    let mut panics = Box::pin(async { panic!("a task") }.budgeted("d", Budget::new()));
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        poll_once(panics.as_mut()).is_ready()
    }));
    assert!(unwound.is_err());
    drop(panics);
    let failing = StreamBody::new(futures_util::stream::iter([Err("the file is gone")]));
    assert!(body(Budget::new(), failing).collect().now_or_never().unwrap().is_err());

    let outcomes = events.usages().into_iter().map(|seen| seen.fields[fields::OUTCOME].clone());
    let names = ["ok", "cut", "cancelled", "panicked", "error"];
    assert_eq!(outcomes.collect::<Vec<_>>(), names.map(Value::from));
    let all = [Outcome::Ok, Outcome::Cut, Outcome::Cancelled, Outcome::Panicked, Outcome::Error];
    assert_eq!(all.map(|outcome| outcome.to_string()), names);
}

#[tokio::test(start_paused = true)]
async fn nested_work_has_an_event_each() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = ready(()).budgeted("inner", Budget::new()).budgeted("outer", Budget::new());
    work.await.unwrap().unwrap();
    let works = events.usages().into_iter().map(|seen| seen.fields[fields::WORK].clone());
    assert_eq!(works.collect::<Vec<_>>(), ["inner", "outer"].map(Value::from));
}

#[tokio::test(start_paused = true)]
async fn usage_is_silent_above_debug() {
    let (events, _guard) = Events::listen(LevelFilter::INFO);
    let work = async { ready(()).external("payments").await };
    work.budgeted("order", Budget::new().external_calls(0)).await.unwrap().unwrap();
    assert_eq!((events.violations().len(), events.usages().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_soft_and_a_hard_crossing_are_an_event_each() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = async {
        for _ in 0..5 {
            drop(ready(()).external("payments").await);
        }
    };
    let budget = Budget::new().external_calls(Limit::soft(1).and_hard(2));
    work.budgeted("order", budget).await.unwrap_err();
    let levels = events.violations().into_iter().map(|seen| seen.level);
    assert_eq!(levels.collect::<Vec<_>>(), [Level::WARN, Level::ERROR]);
}

/// Panics whenever it is told something.
struct Broken;

impl Reporter for Broken {
    fn violation(&self, _: &Violation) {
        panic!("a reporter that panics at a violation")
    }

    fn finished(&self, _: &Report<'_>) {
        panic!("a reporter that panics at the end")
    }
}

#[tokio::test(start_paused = true)]
async fn a_reporter_that_panics_is_told_of_and_the_events_are_there_all_the_same() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let work = async { ready(()).external("payments").await };
    let work = work.budgeted("order", Budget::new().external_calls(0)).with_reporter(Broken);
    work.await.unwrap().unwrap();
    assert_eq!((events.violations().len(), events.usages().len()), (1, 1));
    let health = events.health();
    assert_eq!(health.len(), 2);
    for said in health {
        assert_eq!(said.level, Level::ERROR);
        assert_eq!(said.fields["message"], "a reporter panicked; its report may be lost".into());
    }
}

/// A subscriber that panics at every event.
struct Failing;

impl<S: Subscriber> layer::Layer<S> for Failing {
    fn on_event(&self, _: &Event<'_>, _: layer::Context<'_, S>) {
        panic!("a subscriber that panics")
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_does_not_hurt_the_work() {
    let subscriber = tracing_subscriber::registry().with(Failing);
    let _guard = tracing::subscriber::set_default(subscriber);
    let work = async { ready(7).external("payments").await };
    let work = work.budgeted("order", Budget::new().external_calls(0));
    assert_eq!(work.await, Ok(Ok(7)));
    assert_eq!(request_budget::Usage::current(), None);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_nothing_measures_is_said_once() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    for _ in 0..2 {
        let budget = Budget::new().memory(8 << 20).retained(0);
        poll_fn(|_| Poll::Ready(())).budgeted("order", budget).await.unwrap();
    }
    let [said] = <[Seen; 1]>::try_from(events.health()).unwrap();
    assert_eq!(said.level, Level::WARN);
    assert_eq!(said.fields[fields::RESOURCE], "memory, retained".into());
    let Value::Text(message) = &said.fields["message"] else { panic!("a message") };
    assert!(message.contains("the counting allocator is not installed"), "{message}");
    assert_eq!(events.violations(), [], "it cannot be crossed");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_violations_is_counted_and_not_said() {
    let (events, _guard) = Events::listen(LevelFilter::TRACE);
    let told = Arc::new(AtomicU64::new(0));
    let violate = async |name: &'static str, severity: fn(u64) -> Limit<u64>| {
        let counted = Arc::clone(&told);
        let work = async { async {}.external("payments").await.is_ok() };
        let work = work.budgeted(name, Budget::new().external_calls(severity(0)));
        let count = move |_: &Violation| {
            counted.fetch_add(1, Relaxed);
        };
        drop(work.with_reporter(count).await);
    };
    let said = |at: usize| {
        let seen = events.violations().split_off(at);
        seen.iter().map(|seen| seen.fields.get(fields::LEFT_OUT).cloned()).collect::<Vec<_>>()
    };
    for _ in 0..1_000 {
        violate("storm", Limit::soft).await;
    }
    assert_eq!(said(0), vec![None; 10]);
    assert_eq!(told.load(Relaxed), 1_000, "a reporter is told of each");

    violate("other", Limit::soft).await;
    violate("storm", Limit::hard).await;
    assert_eq!(said(10), [None, None], "of another name, or severity");

    tokio::time::advance(ms(1_000)).await;
    violate("storm", Limit::soft).await;
    violate("storm", Limit::soft).await;
    assert_eq!(said(12), [Some(Value::Number(990)), None]);
    assert_eq!(events.usages().len(), 1_004, "every usage is said");
}

#[tokio::test(start_paused = true)]
async fn a_name_for_each_job_makes_no_violation_of_others_vanish() {
    let (events, _guard) = Events::listen(LevelFilter::WARN);
    let violate = async |name: Name| {
        let work = async { async {}.external("payments").await.is_ok() };
        work.budgeted(name, Budget::new().external_calls(0)).await.unwrap();
    };
    let made = |name: &str| Name::from(name.to_owned());
    violate(made("nightly")).await;
    for job in 0..100_000 {
        violate(Name::from(format!("job {job}"))).await;
    }
    let flood = events.violations().len();
    assert!(flood < 2_000, "{flood}");
    let [health] = <[Seen; 1]>::try_from(events.health()).unwrap();
    assert_eq!((health.level, &health.fields[fields::LEFT_OUT]), (Level::WARN, &1.into()));

    // Of those that are known, or part of the program, each is emitted as often as without the
    // flood.
    for _ in 0..20 {
        violate("checkout".into()).await;
        violate(made("nightly")).await;
    }
    tokio::time::advance(ms(1_000)).await;
    violate("checkout".into()).await;
    violate(made("nightly")).await;
    let named = |name: &str| {
        let seen = events.violations().into_iter();
        let named = seen.filter(|seen| seen.fields[fields::WORK] == name.into());
        named.map(|seen| seen.fields.get(fields::LEFT_OUT).cloned()).collect::<Vec<_>>()
    };
    let left_out = |n: u64| [vec![None; 10], vec![Some(n.into())]].concat();
    assert_eq!(named("checkout"), left_out(10));
    assert_eq!(named("nightly"), left_out(11), "one was before the flood");
    assert_eq!(events.violations().len(), flood + 10 + 9 + 2);
}
