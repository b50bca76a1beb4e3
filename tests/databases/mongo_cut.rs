//! Work that is cut, or dropped, while a MongoDB command is in flight: the answer goes out at once,
//! the command is not dropped midway.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response, StatusCode};
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use mongodb::event::EventHandler;
use mongodb::event::cmap::{CmapEvent, ConnectionClosedReason};
use mongodb::options::{ClientOptions, ReadConcern};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use request_budget::mongodb::{Client, ClientSession};
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetExt, BudgetLayer, Usage, Violation};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::mongo_session::{admin, none_is_open};
use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            ("mongodb_cut_request_is_answered_and_finishes_its_command_on_one_thread", |url| {
                with_runtime(0, cut_request(url, "cut_one"))
            }),
            ("mongodb_cut_request_is_answered_and_finishes_its_command_on_two_threads", |url| {
                with_runtime(2, cut_request(url, "cut_two"))
            }),
            ("mongodb_request_whose_client_hangs_up_finishes_its_command", |url| {
                with_runtime(0, dropped_request(url))
            }),
            ("mongodb_body_that_is_dropped_finishes_its_command", |url| {
                with_runtime(0, dropped_body(url))
            }),
            ("mongodb_merged_body_that_is_dropped_finishes_its_command", |url| {
                with_runtime(0, dropped_merged_body(url))
            }),
            ("mongodb_command_of_a_child_does_not_delay_a_cut", |url| {
                with_runtime(0, command_of_a_child(url))
            }),
            ("mongodb_handler_that_panics_is_not_polled_again", |url| with_runtime(0, panics(url))),
            ("mongodb_cut_task_finishes_its_command", |url| with_runtime(0, cut_task(url))),
            ("mongodb_grace_has_an_end", |url| with_runtime(0, grace(url))),
            ("mongodb_time_ends_where_the_reply_is_read", |url| with_runtime(0, busy_after(url))),
            ("mongodb_survives_2000_cuts_at_random_on_one_thread", |url| {
                with_runtime(0, cuts_at_random(url, "cuts_one"))
            }),
            ("mongodb_survives_2000_cuts_at_random_on_two_threads", |url| {
                with_runtime(2, cuts_at_random(url, "cuts_two"))
            }),
        ],
    );
}

pub(crate) const CUT_AFTER: Duration = Duration::from_millis(100);

/// How the driver's connections fare.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Counts>>);

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Checked out, and neither checked in nor closed since.
    out: i64,
    /// Closed because a call was dropped midway.
    pub(crate) dropped: u64,
}

impl Connections {
    fn handler(&self) -> EventHandler<CmapEvent> {
        let counts = Arc::clone(&self.0);
        EventHandler::callback(move |event| {
            let mut counts = counts.lock().expect("no panic");
            match event {
                CmapEvent::ConnectionCheckedOut(_) => counts.out += 1,
                CmapEvent::ConnectionCheckedIn(_) => counts.out -= 1,
                CmapEvent::ConnectionClosed(event) => {
                    counts.dropped += u64::from(event.reason == ConnectionClosedReason::Dropped);
                }
                _ => {}
            }
        })
    }

    pub(crate) fn now(&self) -> Counts {
        *self.0.lock().expect("no panic")
    }

    pub(crate) async fn all_are_back(&self) {
        while self.now().out > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) async fn options(url: &str, connections: &Connections) -> ClientOptions {
    let mut options = ClientOptions::parse(url).await.expect("a connection string");
    options.max_pool_size = Some(8);
    options.cmap_event_handler = Some(connections.handler());
    options
}

/// A collection with so many documents, through a client of ours.
async fn posts(
    url: &str,
    connections: &Connections,
    database: &str,
    count: i32,
) -> Collection<Document> {
    client_and_posts(options(url, connections).await, database, count).await.1
}

/// The same with these options, and the client.
pub(crate) async fn client_and_posts(
    options: ClientOptions,
    database: &str,
    count: i32,
) -> (Client, Collection<Document>) {
    let client = Client::with_options(options).expect("good options");
    let database = client.database(database);
    database.drop().await.expect("drops");
    let posts = database.collection("posts");
    posts.insert_many((0..count).map(|n| doc! { "_id": n })).await.expect("inserts");
    (client, posts)
}

/// Takes so long for each document that it looks at.
pub(crate) fn slow(milliseconds: u32) -> Document {
    doc! { "$where": format!("sleep({milliseconds}) || true") }
}

type Ended = (Outcome, Usage);

#[derive(Clone)]
struct ToChannel(UnboundedSender<Ended>);

impl Reporter for ToChannel {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        self.0.send((report.outcome(), report.usage())).expect("the test waits");
    }
}

fn reporter() -> (ToChannel, UnboundedReceiver<Ended>) {
    let (sender, receiver) = unbounded_channel();
    (ToChannel(sender), receiver)
}

/// Says when it is dropped, and whether inside a unit of work.
struct Guard(UnboundedSender<bool>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(Usage::current().is_some());
    }
}

/// Finds slowly, then would find again.
async fn find_twice(posts: Collection<Document>, guard: Guard) -> Response<Full<Bytes>> {
    posts.find_one(slow(1_000)).await.expect("finds");
    posts.find_one(doc! {}).await.expect("finds");
    drop(guard);
    Response::new(Full::default())
}

async fn cut_request(url: &str, database: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, database, 1).await;
    let (reporter, mut reports) = reporter();
    let (dropped, mut drops) = unbounded_channel();
    let layer = BudgetLayer::new(Budget::new().total_time(CUT_AFTER)).with_reporter(reporter);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (posts, guard) = (posts.clone(), Guard(dropped.clone()));
        async move { Ok::<_, Infallible>(find_twice(posts, guard).await) }
    }));
    let answer = service.oneshot(Request::new(())).await.expect("infallible");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(answer);
    assert!(drops.try_recv().is_err(), "the handler is not dropped yet");
    assert!(reports.try_recv().is_err(), "the report waits for what goes on");
    let (outcome, usage) = reports.recv().await.expect("a report");
    assert_eq!(drops.try_recv(), Ok(true), "it is dropped inside its scope");
    assert_eq!((outcome, usage.queries), (Outcome::Cut, 1));
    assert!(usage.query_time > usage.total_time, "{usage:?}");
    assert!(reports.try_recv().is_err(), "one report");
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0);
}

async fn dropped_request(url: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, "dropped_request", 1).await;
    let plain = {
        // Without us the connection is lost: else the rest would prove nothing.
        let client = options(url, &connections).await;
        let client = mongodb::Client::with_options(client).expect("good options");
        client.database("dropped_request").collection::<Document>("posts")
    };
    plain.find_one(doc! {}).await.expect("finds");
    timeout(CUT_AFTER, async { plain.find_one(slow(1_000)).await }).await.expect_err("is dropped");
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 1);

    let (reporter, mut reports) = reporter();
    let (dropped, mut drops) = unbounded_channel();
    let layer = BudgetLayer::new(Budget::new()).with_reporter(reporter);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (posts, guard) = (posts.clone(), Guard(dropped.clone()));
        async move { Ok::<_, Infallible>(find_twice(posts, guard).await) }
    }));
    timeout(CUT_AFTER, service.oneshot(Request::new(()))).await.expect_err("the client hangs up");
    assert!(drops.try_recv().is_err(), "the handler is not dropped yet");
    let (outcome, usage) = reports.recv().await.expect("a report");
    assert_eq!(drops.try_recv(), Ok(true));
    assert_eq!((outcome, usage.queries), (Outcome::Cancelled, 1));
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 1, "no other one");
}

async fn dropped_body(url: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, "dropped_body", 4).await;
    let (reporter, mut reports) = reporter();
    let layer = BudgetLayer::new(Budget::new()).with_reporter(reporter);
    let mut service = layer.layer(service_fn(move |_: Request<()>| {
        let posts = posts.clone();
        async move {
            let cursor = posts.find(slow(300)).batch_size(1).await.expect("finds");
            let frames = cursor.map_ok(|post| Frame::data(Bytes::from(post.to_string())));
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
        }
    }));
    let answer = service.call(Request::new(())).await.expect("infallible");
    let mut body = Box::pin(answer.into_body());
    body.frame().await.expect("there are documents").expect("the cursor is good");
    timeout(CUT_AFTER, body.frame()).await.expect_err("the next batch is on its way");
    drop(body);
    assert!(reports.try_recv().is_err(), "the report waits for what goes on");
    let (outcome, usage) = reports.recv().await.expect("a report");
    assert_eq!((outcome, usage.queries), (Outcome::Cancelled, 2));
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0);
}

async fn cut_task(url: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, "cut_task", 1).await;
    let (reporter, mut reports) = reporter();
    let (dropped, mut drops) = unbounded_channel();
    let work = find_twice(posts, Guard(dropped));
    let work = work.budgeted("task", Budget::new().total_time(CUT_AFTER)).with_reporter(reporter);
    work.await.expect_err("is cut");
    assert_eq!(drops.try_recv(), Ok(true));
    let (outcome, usage) = reports.try_recv().expect("a report");
    assert_eq!((outcome, usage.queries), (Outcome::Cut, 1));
    assert!(usage.query_time > usage.total_time, "{usage:?}");
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0);
}

/// One side has frames while the other waits for its command.
async fn dropped_merged_body(url: &str) {
    use futures_util::{StreamExt, stream};

    let connections = Connections::default();
    let posts = posts(url, &connections, "dropped_merged_body", 1).await;
    let (reporter, mut reports) = reporter();
    let (sender, receiver) = unbounded_channel::<()>();
    let receiver = Mutex::new(Some(receiver));
    // Only the command can end it in time: the test waits no longer than this.
    let budget = Budget::new().grace_period(Duration::from_secs(3_600));
    let layer = BudgetLayer::new(budget).with_reporter(reporter);
    let mut service = layer.layer(service_fn(move |_: Request<()>| {
        let posts = posts.clone();
        let mut events = receiver.lock().expect("no panic").take().expect("called once");
        async move {
            let events = stream::poll_fn(move |cx| events.poll_recv(cx));
            let found = async move { drop(posts.find_one(slow(300)).await.expect("finds")) };
            let both = stream::select(events, stream::once(found));
            let frames = both.map(|()| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"."))));
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
        }
    }));
    let answer = service.call(Request::new(())).await.expect("infallible");
    let mut body = Box::pin(answer.into_body());
    timeout(CUT_AFTER, body.frame()).await.expect_err("the command is under way");
    for _ in 0..3 {
        sender.send(()).expect("it is received");
    }
    drop(body);
    let (outcome, usage) = reports.recv().await.expect("a report");
    assert_eq!((outcome, usage.queries), (Outcome::Cancelled, 1));
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0);
}

/// It is in a task of its own, and not dropped with the work.
async fn command_of_a_child(url: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, "command_of_a_child", 1).await;
    let (reporter, mut reports) = reporter();
    let work = async {
        let child = async move { drop(posts.find_one(slow(1_000)).await.expect("finds")) };
        tokio::spawn(child.in_current_budget());
        std::future::pending::<()>().await
    };
    let work = work.budgeted("parent", Budget::new().total_time(CUT_AFTER)).with_reporter(reporter);
    work.await.expect_err("is cut");
    assert_eq!(connections.now().out, 1, "the command of the child is still under way");
    assert_eq!(reports.try_recv().expect("a report").1.queries, 1);
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0);
}

async fn panics(url: &str) {
    let posts = posts(url, &Connections::default(), "panics", 1).await;
    let (reporter, mut reports) = reporter();
    let polls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&polls);
    let layer = BudgetLayer::new(Budget::new()).with_reporter(reporter);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (posts, polls) = (posts.clone(), Arc::clone(&counted));
        let mut find = Box::pin(async move { posts.find_one(slow(300)).await });
        let mut bug = Box::pin(tokio::time::sleep(CUT_AFTER));
        poll_fn(move |cx| {
            assert!(find.as_mut().poll(cx).is_pending());
            if bug.as_mut().poll(cx).is_ready() {
                *polls.lock().expect("no panic under it") += 1;
                panic!("a handler that panics");
            }
            Poll::<Result<Response<Full<Bytes>>, Infallible>>::Pending
        })
    }));
    tokio::spawn(service.oneshot(Request::new(()))).await.expect_err("panics");
    assert_eq!(reports.try_recv().expect("a report").0, Outcome::Panicked);
    assert_eq!(*polls.lock().expect("no panic under it"), 1);
}

async fn grace(url: &str) {
    let connections = Connections::default();
    let posts = posts(url, &connections, "grace", 1).await;
    let budget = Budget::new().total_time(CUT_AFTER).grace_period(CUT_AFTER);
    let (reporter, mut reports) = reporter();
    let (dropped, mut drops) = unbounded_channel();
    let guards = dropped.clone();
    let layer = BudgetLayer::new(budget.clone()).with_reporter(reporter);
    let again = posts.clone();
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (posts, guard) = (again.clone(), Guard(guards.clone()));
        async move { Ok::<_, Infallible>(find_twice(posts, guard).await) }
    }));
    service.oneshot(Request::new(())).await.expect("infallible");
    assert!(reports.try_recv().is_err(), "the report waits for what goes on");
    let (outcome, usage) = reports.recv().await.expect("a report");
    assert_eq!(drops.try_recv(), Ok(true));
    assert_eq!((outcome, usage.queries), (Outcome::Cut, 1));
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 1, "the command was still under way");

    find_twice(posts, Guard(dropped)).budgeted("task", budget).await.expect_err("is cut");
    assert_eq!(drops.try_recv(), Ok(true));
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 2);
}

/// What keeps the thread busy once the reply is there is not the database's time, and the time of
/// the last command is known when the work ends.
async fn busy_after(url: &str) {
    let posts = posts(url, &Connections::default(), "busy_after", 1).await;
    let (reporter, mut reports) = reporter();
    let work = async {
        let started = Instant::now();
        posts.find_one(doc! {}).await.expect("finds");
        let busy = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        (started.elapsed(), busy.elapsed())
    };
    let work = work.budgeted("busy", Budget::new()).with_reporter(reporter);
    let (all, busy) = work.await.expect("no limit");
    let (_, usage) = reports.try_recv().expect("a report");
    assert_eq!(usage.queries, 1);
    assert!(!usage.query_time.is_zero());
    assert_eq!(usage.query_time, usage.slow_query);
    assert!(usage.query_time <= all - busy, "{usage:?}: {busy:?} of {all:?} was the handler's");
}

#[derive(Debug, Clone)]
enum Operation {
    Insert,
    InsertMany,
    Find,
    FindAndModify,
    Aggregate,
    Transaction,
}

/// A request: what it does, and after how long it is ended, and how.
#[derive(Debug, Clone)]
struct Plan {
    operations: Vec<Operation>,
    ends_after: Duration,
    is_cut: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let operation = prop_oneof![
        Just(Operation::Insert),
        Just(Operation::InsertMany),
        Just(Operation::Find),
        Just(Operation::FindAndModify),
        Just(Operation::Aggregate),
        Just(Operation::Transaction),
    ];
    let operations = prop::collection::vec(operation, 1..8);
    (operations, 0..150_000_u64, any::<bool>()).prop_map(|(operations, micros, is_cut)| Plan {
        operations,
        ends_after: Duration::from_micros(micros),
        is_cut,
    })
}

/// What the requests of a run have left behind.
#[derive(Clone, Default)]
struct Traces {
    /// The documents whose insertion was acknowledged.
    acknowledged: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Traces {
    fn acknowledge(&self, ids: impl IntoIterator<Item = String>) {
        self.acknowledged.lock().expect("no panic").extend(ids);
    }

    async fn run(&self, posts: &Collection<Document>, request: usize, operations: Vec<Operation>) {
        for (at, operation) in operations.into_iter().enumerate() {
            let id = format!("{request}-{at}");
            if let Err(error) = self.perform(posts, &id, operation).await {
                self.errors.lock().expect("no panic").push(error.to_string());
            }
        }
    }

    async fn perform(
        &self,
        posts: &Collection<Document>,
        id: &str,
        operation: Operation,
    ) -> mongodb::error::Result<()> {
        match operation {
            Operation::Insert => {
                posts.insert_one(doc! { "_id": id }).await?;
                self.acknowledge([id.to_owned()]);
            }
            Operation::InsertMany => {
                let ids: Vec<_> = (0..5).map(|n| format!("{id}-{n}")).collect();
                posts.insert_many(ids.iter().map(|id| doc! { "_id": id })).await?;
                self.acknowledge(ids);
            }
            Operation::Find => {
                let mut cursor = posts.find(doc! {}).batch_size(3).limit(8).await?;
                while cursor.try_next().await?.is_some() {}
            }
            Operation::FindAndModify => {
                let update = doc! { "$inc": { "seen": 1 } };
                posts.find_one_and_update(doc! { "_id": "0-0" }, update).await?;
            }
            Operation::Aggregate => {
                let pipeline = [doc! { "$limit": 20 }, doc! { "$sort": { "_id": 1 } }];
                posts.aggregate(pipeline).await?.try_collect::<Vec<_>>().await?;
            }
            Operation::Transaction => {
                let mut session = ClientSession::from(posts.client().start_session().await?);
                session.start_transaction().await?;
                posts.insert_one(doc! { "_id": id }).session(&mut session).await?;
                session.commit_transaction().await?;
                self.acknowledge([id.to_owned()]);
            }
        }
        Ok(())
    }
}

async fn cuts_at_random(url: &str, database: &'static str) {
    const REQUESTS: usize = 2_000;
    let connections = Connections::default();
    let mut options = options(url, &connections).await;
    options.app_name = Some(database.to_owned());
    // Enough for all: what is done in time must not hang on how long they wait for each other.
    options.max_pool_size = Some(128);
    let admin = admin(url).await;
    // Nearly every command is caught midway.
    let slowly = doc! {
        "configureFailPoint": "failCommand",
        "mode": { "activationProbability": 0.7 },
        "data": {
            "failCommands": ["insert", "find", "getMore", "findAndModify", "aggregate", "commitTransaction"],
            "blockConnection": true, "blockTimeMS": 20, "appName": database,
        },
    };
    let client = Client::with_options(options).expect("good options");
    client.database(database).drop().await.expect("drops");
    let posts = client.database(database).collection::<Document>("posts");
    posts
        .insert_many((0..20).map(|n| doc! { "_id": format!("first-{n}") }))
        .await
        .expect("inserts");
    admin.run_command(slowly).await.expect("enableTestCommands is set");

    let traces = Traces::default();
    let (reporter, mut reports) = reporter();
    let mut runner = TestRunner::deterministic();
    let at_once = Arc::new(Semaphore::new(32));
    let mut clients = tokio::task::JoinSet::new();
    for request in 0..REQUESTS {
        let plan = plan().new_tree(&mut runner).expect("a value").current();
        let permit = Arc::clone(&at_once).acquire_owned().await.expect("is open");
        let (traces, posts) = (traces.clone(), posts.clone());
        let reporter = reporter.clone();
        clients.spawn(async move {
            let budget = Budget::new();
            let budget = if plan.is_cut { budget.total_time(plan.ends_after) } else { budget };
            let layer = BudgetLayer::new(budget).with_reporter(reporter);
            let operations = plan.operations;
            let service = layer.layer(service_fn(move |_: Request<()>| {
                let (traces, posts, operations) =
                    (traces.clone(), posts.clone(), operations.clone());
                async move {
                    traces.run(&posts, request, operations).await;
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            }));
            let answer = service.oneshot(Request::new(()));
            if plan.is_cut {
                drop(answer.await.expect("infallible").into_body().collect().await);
            } else {
                drop(timeout(plan.ends_after, answer).await);
            }
            drop(permit);
        });
    }
    clients.join_all().await;
    let mut ended = Vec::new();
    while ended.len() < REQUESTS {
        ended.push(reports.recv().await.expect("the sender is here"));
    }
    assert!(reports.try_recv().is_err(), "each request is reported once");
    let count = |outcome| ended.iter().filter(|(it, _)| *it == outcome).count();
    let (cut, cancelled) = (count(Outcome::Cut), count(Outcome::Cancelled));
    assert!(cut > REQUESTS / 5 && cancelled > REQUESTS / 5, "{cut} cut, {cancelled} cancelled");

    let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
    admin.run_command(off).await.expect("ends the delays");
    connections.all_are_back().await;
    assert_eq!(connections.now().dropped, 0, "no call was dropped half way");
    none_is_open(&admin, database).await;
    assert_eq!(*traces.errors.lock().expect("no panic"), [] as [String; 0]);
    let there =
        posts.distinct("_id", doc! {}).read_concern(ReadConcern::majority()).await.expect("finds");
    let there: std::collections::HashSet<_> = there.iter().filter_map(|id| id.as_str()).collect();
    let acknowledged = traces.acknowledged.lock().expect("no panic");
    assert!(acknowledged.len() > REQUESTS / 4, "{} writes", acknowledged.len());
    for id in &*acknowledged {
        assert!(there.contains(id.as_str()), "{id} was acknowledged and is not there");
    }
}
