//! MongoDB: the count against the driver's own command events and against the server's profiler.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt, StreamExt, TryStreamExt};
use mongodb::bson::{Document, doc};
use mongodb::error::ErrorKind;
use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::command::CommandEvent;
use mongodb::options::ClientOptions;
use mongodb::{Collection, IndexModel};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use request_budget::mongodb::{Client, Detail};
use request_budget::{Budget, BudgetExt, Usage, Violation};
use tokio::sync::watch;

use crate::sql::{Last, usage_of};
use crate::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            ("mongodb_counts_what_the_driver_sends_on_one_thread", |url| equal_the_driver(url, 0)),
            ("mongodb_counts_what_the_driver_sends_on_two_threads", |url| equal_the_driver(url, 2)),
            ("mongodb_counts_what_the_server_profiles", equal_the_profiler),
            ("mongodb_repeated_commands_are_found_by_their_shape", repeated_by_shape),
            ("mongodb_keeps_the_handlers_of_the_user", handlers_are_kept),
            ("mongodb_gridfs_is_counted", gridfs),
            ("mongodb_command_in_flight_at_the_end_is_counted_with_its_time", in_flight),
            ("mongodb_retry_is_one_more_query", retries),
            ("mongodb_connection_that_breaks_gives_the_error_of_the_driver", broken_connection),
            ("mongodb_wait_for_a_connection_is_no_query_time", connection_wait),
            ("mongodb_tls_that_is_refused_gives_the_error_of_the_driver", tls_refused),
            ("mongodb_unreachable_server_gives_the_error_of_the_driver", |_| unreachable_server()),
        ],
    );
}

#[derive(Debug, Clone)]
enum Step {
    InsertOne,
    InsertMany(usize),
    /// A batch size and how many documents are taken before the cursor is dropped; `None` for all.
    Find {
        batch: u32,
        take: Option<usize>,
    },
    FindOne,
    Aggregate,
    Count,
    Distinct,
    FindAndModify,
    UpdateMany,
    DeleteOne,
    Index,
    /// Duplicate key, or an operator that does not exist.
    Fails {
        at_insert: bool,
    },
    Transaction {
        inserts: usize,
        end: End,
    },
    ChangeStream,
    Joined(usize),
    Carried,
    NotCarried,
    NeverPolled,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Abort,
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![Just(End::Commit), Just(End::Abort), Just(End::Drop)];
    prop_oneof![
        Just(Step::InsertOne),
        (1..30_usize).prop_map(Step::InsertMany),
        (2..12_u32, prop::option::of(0..20_usize))
            .prop_map(|(batch, take)| Step::Find { batch, take }),
        Just(Step::FindOne),
        Just(Step::Aggregate),
        Just(Step::Count),
        Just(Step::Distinct),
        Just(Step::FindAndModify),
        Just(Step::UpdateMany),
        Just(Step::DeleteOne),
        Just(Step::Index),
        any::<bool>().prop_map(|at_insert| Step::Fails { at_insert }),
        (0..3_usize, end).prop_map(|(inserts, end)| Step::Transaction { inserts, end }),
        Just(Step::ChangeStream),
        (2..4_usize).prop_map(Step::Joined),
        Just(Step::Carried),
        Just(Step::NotCarried),
        Just(Step::NeverPolled),
    ]
}

/// What runs outside the unit of work, and so in the driver's account only.
#[derive(Default)]
struct Elsewhere {
    commands: u64,
    aborts: u64,
}

impl Step {
    async fn run(&self, client: &Client, posts: &Collection<Document>, elsewhere: &mut Elsewhere) {
        let post = |n: i64| doc! { "n": n, "author": "eve" };
        match self {
            Self::InsertOne => drop(posts.insert_one(post(1)).await.expect("inserts")),
            Self::InsertMany(count) => {
                let many = (0..*count as i64).map(post);
                posts.insert_many(many).await.expect("inserts");
            }
            Self::Find { batch, take } => {
                let mut cursor = posts.find(doc! {}).batch_size(*batch).await.expect("finds");
                let mut left = take.unwrap_or(usize::MAX);
                while left > 0 && cursor.try_next().await.expect("reads").is_some() {
                    left -= 1;
                }
            }
            Self::FindOne => drop(posts.find_one(doc! { "n": 1 }).await.expect("finds")),
            Self::Aggregate => {
                let pipeline = [doc! { "$group": { "_id": "$author", "sum": { "$sum": "$n" } } }];
                let groups = posts.aggregate(pipeline).await.expect("aggregates");
                groups.try_collect::<Vec<_>>().await.expect("reads");
            }
            Self::Count => drop(posts.count_documents(doc! {}).await.expect("counts")),
            Self::Distinct => drop(posts.distinct("n", doc! {}).await.expect("finds")),
            Self::FindAndModify => {
                let set = doc! { "$set": { "seen": true } };
                posts.find_one_and_update(doc! { "n": 1 }, set).await.expect("updates");
            }
            Self::UpdateMany => {
                posts.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.expect("updates");
            }
            Self::DeleteOne => drop(posts.delete_one(doc! { "n": 2 }).await.expect("deletes")),
            Self::Index => {
                let index = IndexModel::builder().keys(doc! { "author": 1 }).build();
                posts.create_index(index).await.expect("makes an index");
            }
            Self::Fails { at_insert: true } => {
                let twice = [doc! { "_id": "same" }, doc! { "_id": "same" }];
                posts.insert_many(twice).await.expect_err("one key twice");
            }
            Self::Fails { at_insert: false } => {
                posts.find(doc! { "$nonsense": 1 }).await.expect_err("no such operator");
            }
            Self::Transaction { inserts, end } => {
                let mut session = client.start_session().await.expect("starts");
                session.start_transaction().await.expect("starts");
                for n in 0..*inserts as i64 {
                    posts.insert_one(post(n)).session(&mut session).await.expect("inserts");
                }
                match end {
                    End::Commit => session.commit_transaction().await.expect("commits"),
                    End::Abort => session.abort_transaction().await.expect("aborts"),
                    // It is aborted from a task of its own, if anything was sent.
                    End::Drop => elsewhere.aborts += u64::from(*inserts > 0),
                }
            }
            Self::ChangeStream => {
                let mut changes = posts.watch().await.expect("watches");
                posts.insert_one(post(7)).await.expect("inserts");
                changes.next().await.expect("there is a change").expect("reads");
            }
            Self::Joined(count) => {
                let finds = (0..*count).map(|_| async { posts.find_one(doc! {}).await });
                futures_util::future::try_join_all(finds).await.expect("finds");
            }
            Self::Carried => {
                let posts = posts.clone();
                let child = async move { posts.find_one(doc! {}).await }.in_current_budget();
                tokio::spawn(child).await.expect("no panic").expect("finds");
            }
            Self::NotCarried => {
                let posts = posts.clone();
                let child = async move { posts.find_one(doc! {}).await };
                tokio::spawn(child).await.expect("no panic").expect("finds");
                elsewhere.commands += 1;
            }
            Self::NeverPolled => drop(posts.find_one(doc! {}).into_future()),
        }
    }
}

/// The commands that the driver says it has started, by name: a handler of the user's own.
#[derive(Clone)]
struct Witness(watch::Sender<HashMap<String, u64>>);

impl Witness {
    fn new() -> Self {
        Self(watch::Sender::default())
    }

    fn handler(&self) -> EventHandler<CommandEvent> {
        let commands = self.0.clone();
        EventHandler::callback(move |event| {
            if let CommandEvent::Started(event) = event {
                commands.send_modify(|seen| *seen.entry(event.command_name).or_default() += 1);
            }
        })
    }

    /// All but what is sent when a cursor or a session is dropped.
    fn commands(&self) -> u64 {
        let seen = self.0.borrow();
        let own = ["killCursors", "endSessions", "killSessions", "abortTransaction"];
        seen.iter().filter(|(name, _)| !own.contains(&&***name)).map(|(_, count)| count).sum()
    }

    fn aborts(&self) -> u64 {
        self.0.borrow().get("abortTransaction").copied().unwrap_or(0)
    }

    async fn wait_for_aborts(&self, count: u64) {
        let seen = |seen: &HashMap<String, u64>| {
            seen.get("abortTransaction").copied().unwrap_or(0) >= count
        };
        self.0.subscribe().wait_for(seen).await.expect("the sender is here");
    }
}

async fn options(url: &str) -> ClientOptions {
    let mut options =
        ClientOptions::parse(url).await.expect("the variable holds a connection string");
    options.max_pool_size = Some(4);
    options
}

/// A database that is dropped before it is used.
async fn empty_posts(client: &Client, database: &str) -> Collection<Document> {
    let database = client.database(database);
    database.drop().await.expect("drops");
    database.create_collection("posts").await.expect("creates");
    database.collection("posts")
}

fn equal_the_driver(url: &str, workers: usize) {
    let witness = Witness::new();
    let database = format!("driver_{workers}");
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let runtime = runtime(workers);
    let client = runtime.block_on(async {
        let mut options = options(url).await;
        options.command_event_handler = Some(witness.handler());
        Client::with_options(options).expect("the options are good")
    });
    let posts = runtime.block_on(empty_posts(&client, &database));
    let programs = prop::collection::vec(step(), 1..10);
    let result = runner.run(&programs, |program| {
        runtime.block_on(async {
            posts.delete_many(doc! {}).await.expect("deletes");
            let (commands, aborts) = (witness.commands(), witness.aborts());
            let mut elsewhere = Elsewhere::default();
            let usage = usage_of(async {
                for step in &program {
                    let dropped = elsewhere.aborts;
                    step.run(&client, &posts, &mut elsewhere).await;
                    if elsewhere.aborts > dropped {
                        // Its locks would be in the way of what follows.
                        let explicit =
                            program.iter().take_while(|other| !std::ptr::eq(*other, step));
                        let explicit = explicit.filter(|step| is_abort(step)).count() as u64;
                        witness.wait_for_aborts(aborts + explicit + elsewhere.aborts).await;
                    }
                }
            })
            .await;
            let sent = witness.commands() - commands + witness.aborts() - aborts;
            let attributed = sent - elsewhere.aborts - elsewhere.commands;
            prop_assert_eq!(usage.queries, attributed);
            Ok(())
        })
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    runtime.block_on(async { client.database(&database).drop().await }).expect("drops");
}

/// An abort by hand reaches the server only if the transaction has sent something.
fn is_abort(step: &Step) -> bool {
    matches!(step, Step::Transaction { inserts: 1.., end: End::Abort })
}

fn equal_the_profiler(url: &str) {
    with_runtime(0, async {
        let client = Client::with_options(options(url).await).expect("the options are good");
        let posts = empty_posts(&client, "profiled").await;
        let database = client.database("profiled");
        let profile = database.collection::<Document>("system.profile");
        let mut total = 0;
        let mut runner = TestRunner::deterministic();
        for _ in 0..100 {
            // What the profiler does not see (index builds), or sees more than once, is left to the
            // other witness.
            let is_seen = |step: &Step| {
                use Step::*;
                !matches!(step, Transaction { .. } | ChangeStream | NotCarried | Index)
            };
            let programs = prop::collection::vec(step().prop_filter("seen", is_seen), 1..10);
            let program = programs.new_tree(&mut runner).expect("a program").current();
            posts.delete_many(doc! {}).await.expect("deletes");
            database.run_command(doc! { "profile": 2 }).await.expect("profiles");
            let usage = usage_of(async {
                for step in &program {
                    step.run(&client, &posts, &mut Elsewhere::default()).await;
                }
            })
            .await;
            database.run_command(doc! { "profile": 0 }).await.expect("stops profiling");
            let own = doc! { "command.profile": { "$exists": false }, "op": { "$ne": "killcursors" },
            "command.killCursors": { "$exists": false } };
            let seen = profile.find(own).await.expect("finds");
            let seen: Vec<_> = seen.try_collect().await.expect("reads");
            // An update or delete command has an entry for each of its statements; all have one
            // here.
            let commands = seen.len() as u64;
            assert_eq!(usage.queries, commands, "{program:?}");
            total += commands;
            profile.drop().await.expect("drops");
        }
        assert!(total > 300, "the programs do something: {total}");
        database.drop().await.expect("drops");
    });
}

fn repeated_by_shape(url: &str) {
    with_runtime(0, async {
        let client =
            Client::with_detail(options(url).await, Detail::Commands).expect("good options");
        let posts = empty_posts(&client, "shapes").await;
        posts.insert_many((0..5).map(|n| doc! { "n": n })).await.expect("inserts");
        let violations = Arc::new(Mutex::new(Vec::new()));
        let seen = violations.clone();
        let work = async {
            for n in 0..5 {
                posts.find_one(doc! { "n": n }).await.expect("finds");
            }
            Usage::current().expect("inside")
        };
        let usage = work
            .budgeted("n_plus_one", Budget::new().repeated_queries(3))
            .with_reporter(move |violation: &Violation| {
                seen.lock().expect("not poisoned").push(violation.to_string());
            })
            .await
            .expect("soft");
        assert_eq!((usage.queries, usage.repeated_queries, usage.rows), (5, 5, 5));
        let violations = violations.lock().expect("not poisoned");
        let [violation] = &**violations else { panic!("{violations:?}") };
        let start =
            "n_plus_one: 4 executions of the same statement, limit 3: `find posts {n: ?}`, 4 times";
        assert!(violation.starts_with(start), "{violation}");
    });
}

fn handlers_are_kept(url: &str) {
    with_runtime(0, async {
        let (sender, mut events) = tokio::sync::mpsc::channel(100);
        let mut options = options(url).await;
        options.cmap_event_handler = Some(sender.into());
        let witness = Witness::new();
        options.command_event_handler = Some(witness.handler());
        let client = Client::with_detail(options, Detail::Commands).expect("the options are good");
        let names = client.list_database_names();
        let usage = usage_of(async { drop(names.await.expect("lists")) }).await;
        assert_eq!(usage.queries, 1);
        assert_eq!(witness.commands(), 1);
        events.recv().await.expect("an event of the pool");
    });
}

fn gridfs(url: &str) {
    with_runtime(0, async {
        let witness = Witness::new();
        let mut options = options(url).await;
        options.command_event_handler = Some(witness.handler());
        let client = Client::with_options(options).expect("the options are good");
        let database = client.database("gridfs");
        database.drop().await.expect("drops");
        let bucket = database.gridfs_bucket(None);
        let before = witness.commands();
        let usage = usage_of(async {
            let mut upload = bucket.open_upload_stream("file").await.expect("opens");
            upload.write_all(&[7; 600_000]).await.expect("writes");
            upload.close().await.expect("closes");
            let mut content = Vec::new();
            let mut download = bucket.open_download_stream_by_name("file").await.expect("opens");
            download.read_to_end(&mut content).await.expect("reads");
            assert_eq!(content.len(), 600_000);
        })
        .await;
        let sent = witness.commands() - before;
        assert!(sent > 5, "{sent}");
        assert_eq!(usage.queries, sent);
        database.drop().await.expect("drops");
    });
}

fn in_flight(url: &str) {
    with_runtime(0, async {
        let client = Client::with_options(options(url).await).expect("the options are good");
        let posts = empty_posts(&client, "in_flight").await;
        posts.insert_one(doc! { "n": 1 }).await.expect("inserts");
        let slow = doc! { "$where": "sleep(300) || true" };
        let last = Last::default();
        let mut child = None;
        let work = async {
            let find = async move { posts.find_one(slow).await }.in_current_budget();
            child = Some(tokio::spawn(find));
            // The command is out once it has been counted.
            while Usage::current().expect("inside").queries == 0 {
                tokio::task::yield_now().await;
            }
        };
        let budgeted = work.budgeted("in_flight", Budget::new()).with_reporter(last.clone());
        budgeted.await.expect("no limit");
        let usage = last.take();
        assert_eq!(usage.queries, 1);
        assert!(!usage.query_time.is_zero() && usage.query_time < usage.total_time, "{usage:?}");
        child.expect("is spawned").await.expect("no panic").expect("finds");
    });
}

fn retries(url: &str) {
    with_runtime(0, async {
        let witness = Witness::new();
        let mut options = options(url).await;
        options.app_name = Some("retries".to_owned());
        options.command_event_handler = Some(witness.handler());
        let client = Client::with_options(options).expect("the options are good");
        let posts = empty_posts(&client, "retries").await;
        let once = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": {
        "failCommands": ["find"], "closeConnection": true, "appName": "retries" } };
        if let Err(error) = client.database("admin").run_command(once).await {
            panic!("the server must run with --setParameter enableTestCommands=1: {error}");
        }
        let before = witness.commands();
        let usage = usage_of(async { drop(posts.find_one(doc! {}).await.expect("finds")) }).await;
        assert_eq!(witness.commands() - before, 2);
        assert_eq!(usage.queries, 2);
    });
}

fn unreachable_server() {
    with_runtime(0, async {
        let url = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100";
        let plain = mongodb::Client::with_uri_str(url).await.expect("lazy");
        let expected = plain.list_database_names().await.expect_err("nobody listens");
        let client = Client::with_uri_str(url).await.expect("lazy");
        let mut error = None;
        let usage = usage_of(async {
            error = client.list_database_names().await.err();
        })
        .await;
        let error = error.expect("nobody listens");
        assert_eq!(
            std::mem::discriminant(&*error.kind),
            std::mem::discriminant(&*expected.kind),
            "{error}"
        );
        assert_eq!(usage.queries, 0);
    });
}

/// A connection that breaks in mid-command, as when the server is killed.
fn broken_connection(url: &str) {
    with_runtime(0, async {
        let mut options = options(url).await;
        options.app_name = Some("broken".to_owned());
        options.retry_reads = Some(false);
        let plain = mongodb::Client::with_options(options.clone()).expect("the options are good");
        let client = Client::with_options(options).expect("the options are good");
        let posts = empty_posts(&client, "broken").await;
        let twice = doc! { "configureFailPoint": "failCommand", "mode": { "times": 2 }, "data": {
        "failCommands": ["find"], "closeConnection": true, "appName": "broken" } };
        client.database("admin").run_command(twice).await.expect("test commands are on");
        let expected = plain.database("broken").collection::<Document>("posts");
        let expected = expected.find_one(doc! {}).await.expect_err("the server hangs up");
        let mut error = None;
        let usage = usage_of(async { error = posts.find_one(doc! {}).await.err() }).await;
        let error = error.expect("the server hangs up");
        assert_eq!(
            std::mem::discriminant(&*error.kind),
            std::mem::discriminant(&*expected.kind),
            "{error}"
        );
        assert_eq!(usage.queries, 1);
        let next = usage_of(async { drop(posts.find_one(doc! {}).await.expect("finds")) }).await;
        assert_eq!(next.queries, 1, "nothing leaks into the next");
    });
}

fn connection_wait(url: &str) {
    with_runtime(0, async {
        let mut options = options(url).await;
        options.max_pool_size = Some(1);
        let (sender, mut events) = tokio::sync::mpsc::channel(100);
        options.cmap_event_handler = Some(sender.into());
        let client = Client::with_options(options).expect("the options are good");
        let posts = empty_posts(&client, "connection_wait").await;
        posts.insert_one(doc! { "n": 1 }).await.expect("inserts");
        while events.try_recv().is_ok() {}
        let slow = posts.clone();
        let slow = async move { slow.find_one(doc! { "$where": "sleep(200) || true" }).await };
        let slow = tokio::spawn(slow);
        // From then on it has the only connection.
        while !matches!(events.recv().await, Some(CmapEvent::ConnectionCheckedOut(_))) {}
        let usage = usage_of(async { drop(posts.find_one(doc! {}).await.expect("finds")) }).await;
        assert!(usage.connection_wait > Duration::from_millis(100), "{usage:?}");
        assert!(usage.query_time < usage.connection_wait, "{usage:?}");
        slow.await.expect("no panic").expect("finds");
    });
}

fn tls_refused(url: &str) {
    with_runtime(0, async {
        let mut options = options(url).await;
        options.tls = Some(mongodb::options::Tls::Enabled(mongodb::options::TlsOptions::default()));
        options.server_selection_timeout = Some(Duration::from_millis(200));
        let client = Client::with_options(options).expect("the options are good");
        let mut error = None;
        let usage = usage_of(async { error = client.list_database_names().await.err() }).await;
        let error = error.expect("the server speaks no TLS");
        assert!(matches!(*error.kind, ErrorKind::ServerSelection { .. }), "{error}");
        assert_eq!(usage.queries, 0);
    });
}
