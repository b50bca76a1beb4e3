//! Transactions of MongoDB that are cut, or whose commit is given up: they are rolled back.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use mongodb::bson::{Document, doc};
use mongodb::error::Error;
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::{Collection, Database};
use request_budget::mongodb::{Client, ClientSession};
use request_budget::{Budget, BudgetExt, BudgetLayer, Limit};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn};

use crate::mongo_cut::{CUT_AFTER, Connections, client_and_posts, options, slow};
use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            ("mongodb_cut_transaction_is_rolled_back", |url| with_runtime(0, cut_transaction(url))),
            ("mongodb_transaction_whose_commit_was_given_up_is_rolled_back", |url| {
                with_runtime(0, given_up_commit(url))
            }),
            ("mongodb_session_is_ended_on_the_server_only_where_that_is_needed", |url| {
                with_runtime(0, only_where_needed(url))
            }),
            ("mongodb_transaction_that_is_given_up_half_way_is_ended", |url| {
                with_runtime(0, given_up_half_way(url))
            }),
        ],
    );
}

/// The transactions that are open on the server, of clients of this name.
async fn open_transactions(admin: &Database, name: &str) -> Vec<Document> {
    let open = doc! { "appName": name, "transaction": { "$exists": true } };
    let pipeline = [doc! { "$currentOp": { "idleSessions": true } }, doc! { "$match": open }];
    let open = admin.aggregate(pipeline).await.expect("aggregates");
    open.try_collect().await.expect("the cursor is good")
}

/// Waits until the server has none any more, which by itself would end them after a minute.
pub(crate) async fn none_is_open(admin: &Database, name: &str) {
    let since = Instant::now();
    while let [first, ..] = open_transactions(admin, name).await.as_slice() {
        assert!(since.elapsed() < Duration::from_secs(30), "{first}");
    }
}

pub(crate) async fn admin(url: &str) -> Database {
    mongodb::Client::with_uri_str(url).await.expect("connects").database("admin")
}

/// The work is cut during the last command before the commit: it goes on until that is over, and
/// asks for a connection for the commit then.
///
/// On one thread: on two it may have that connection at once, and is committed.
async fn cut_transaction(url: &str) {
    const NAME: &str = "rolled_back";
    /// Ends with its first two commands.
    async fn write(posts: &Collection<Document>, session: &mut mongodb::ClientSession) {
        posts.insert_one(doc! { "_id": 1 }).session(&mut *session).await.expect("inserts");
        posts.find_one(doc! {}).session(&mut *session).await.expect("finds");
    }
    /// Notes how often the commit is reached.
    async fn transact(client: &Client, posts: &Collection<Document>, commits: &AtomicU32) {
        let mut session = client.start_session().await.expect("starts");
        session.start_transaction().await.expect("starts");
        write(posts, &mut session).await;
        commits.fetch_add(1, Relaxed);
        session.commit_transaction().await.expect("commits");
    }

    let admin = admin(url).await;
    let connections = Connections::default();
    let mut options = options(url, &connections).await;
    options.app_name = Some(NAME.to_owned());
    let (client, posts) = client_and_posts(options, NAME, 1).await;
    let cut = || Budget::new().queries(Limit::hard(1));
    let commits = Arc::new(AtomicU32::new(0));
    let reached = |so_far| assert_eq!(commits.load(Relaxed), so_far, "the commit was begun");

    // With a session of the driver it stays open: else the rest would prove nothing.
    let with_the_drivers = async {
        let mut session = client.get_ref().start_session().await.expect("starts");
        session.start_transaction().await.expect("starts");
        write(&posts, &mut session).await;
        commits.fetch_add(1, Relaxed);
        session.commit_transaction().await.expect("commits");
    };
    with_the_drivers.budgeted("task", cut()).await.expect_err("is cut");
    reached(1);
    connections.all_are_back().await;
    let open = open_transactions(&admin, NAME).await;
    assert_eq!(open.len(), 1, "{open:?}");
    let session = open[0].get_document("lsid").expect("it has a session").clone();
    let kill = doc! { "killSessions": [{ "id": session.get("id").expect("it has an id") }] };
    admin.run_command(kill).await.expect("ends it");
    none_is_open(&admin, NAME).await;

    let task = transact(&client, &posts, &commits);
    task.budgeted("task", cut()).await.expect_err("is cut");
    reached(2);
    none_is_open(&admin, NAME).await;

    // The convenient way commits in the driver.
    let convenient = async {
        let mut session = client.start_session().await.expect("starts");
        let transact = async |session: &mut mongodb::ClientSession| {
            write(&posts, session).await;
            commits.fetch_add(1, Relaxed);
            Ok(())
        };
        session.start_transaction().and_run2(transact).await.expect("commits");
    };
    convenient.budgeted("task", cut()).await.expect_err("is cut");
    reached(3);
    none_is_open(&admin, NAME).await;

    let (again, there, counted) = (client.clone(), posts.clone(), Arc::clone(&commits));
    let layer = BudgetLayer::new(cut());
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (client, posts, commits) = (again.clone(), there.clone(), Arc::clone(&counted));
        async move {
            transact(&client, &posts, &commits).await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    }));
    let answer = service.oneshot(Request::new(())).await.expect("infallible");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    // The handler goes on in a task of its own.
    while commits.load(Relaxed) < 4 {
        tokio::task::yield_now().await;
    }
    connections.all_are_back().await;
    none_is_open(&admin, NAME).await;

    let left = posts.count_documents(doc! {}).await.expect("counts");
    assert_eq!(left, 1, "nothing was committed");
    // What is not cut is not touched, in a session that the server was told to end before.
    transact(&client, &posts, &commits).await;
    assert_eq!(posts.count_documents(doc! {}).await.expect("counts"), 2);
    assert_eq!(connections.now().dropped, 0);
}

/// The only connection is busy when the commit wants it, and the work has a timeout of its own.
async fn given_up_commit(url: &str) {
    const NAME: &str = "given_up_commit";
    let admin = admin(url).await;
    let mut options = options(url, &Connections::default()).await;
    options.max_pool_size = Some(1);
    options.app_name = Some(NAME.to_owned());
    let (client, posts) = client_and_posts(options, NAME, 1).await;

    let mut session = client.start_session().await.expect("starts");
    session.start_transaction().await.expect("starts");
    posts.insert_one(doc! { "_id": 1 }).session(&mut session).await.expect("inserts");
    let other = posts.clone();
    let other = tokio::spawn(async move { other.find_one(slow(1_000)).await.map(drop) });
    // It has the connection, or is before the commit in the queue for it.
    tokio::task::yield_now().await;
    timeout(CUT_AFTER, session.commit_transaction()).await.expect_err("waits for a connection");
    assert_eq!(open_transactions(&admin, NAME).await.len(), 1);
    drop(session);
    other.await.expect("does not panic").expect("finds");
    none_is_open(&admin, NAME).await;
    assert_eq!(posts.count_documents(doc! {}).await.expect("counts"), 1);
}

/// The names of the commands that were sent, and a word when there is another.
#[derive(Clone, Default)]
struct Sent(Arc<(Mutex<Vec<String>>, Notify)>);

impl Sent {
    fn handler(&self) -> EventHandler<CommandEvent> {
        let sent = Arc::clone(&self.0);
        EventHandler::callback(move |event| {
            if let CommandEvent::Started(event) = event {
                sent.0.lock().expect("no panic").push(event.command_name);
                sent.1.notify_one();
            }
        })
    }

    fn count(&self, name: &str) -> usize {
        let names = self.0.0.lock().expect("no panic");
        names.iter().filter(|it| *it == name).count()
    }

    /// Waits for so many of this name.
    async fn wait(&self, name: &str, count: usize) {
        while self.count(name) < count {
            self.0.1.notified().await;
        }
    }
}

/// A client that tells what it sends, and a collection of one document.
async fn observed(url: &str, name: &'static str) -> (Client, Collection<Document>, Sent) {
    let sent = Sent::default();
    let mut options = options(url, &Connections::default()).await;
    options.app_name = Some(name.to_owned());
    options.command_event_handler = Some(sent.handler());
    let (client, posts) = client_and_posts(options, name, 1).await;
    (client, posts, sent)
}

/// What the server is told to end costs a command: not for what is over.
async fn only_where_needed(url: &str) {
    const NAME: &str = "only_where_needed";
    let (client, posts, sent) = observed(url, NAME).await;
    let start = async || client.start_session().await.expect("starts");

    drop(start().await);

    let mut unused = start().await;
    unused.commit_transaction().await.expect_err("there is none");
    drop(unused);

    let mut rolled_back = start().await;
    rolled_back.start_transaction().await.expect("starts");
    posts.find_one(doc! {}).session(&mut rolled_back).await.expect("finds");
    rolled_back.abort_transaction().await.expect("rolls back");
    rolled_back.abort_transaction().await.expect_err("is over");
    drop(rolled_back);

    let cut_later = async {
        let mut session = start().await;
        session.start_transaction().await.expect("starts");
        posts.find_one(doc! {}).session(&mut session).await.expect("finds");
        session.commit_transaction().await.expect("commits");
        posts.find_one(doc! {}).session(&mut session).await.expect("finds");
        std::future::pending::<()>().await;
    };
    // With the third.
    let budget = Budget::new().queries(Limit::hard(2));
    cut_later.budgeted("task", budget).await.expect_err("is cut");

    let mut done = start().await;
    let find =
        async |session: &mut mongodb::ClientSession| posts.find_one(doc! {}).session(session).await;
    done.start_transaction().and_run2(find).await.expect("commits");
    drop(done);

    // Waits for what is in flight.
    client.into_inner().shutdown().await;
    assert_eq!((sent.count("abortTransaction"), sent.count("killSessions")), (1, 0));
}

/// Where it is given up, and dropped where no runtime is.
async fn given_up_half_way(url: &str) {
    const NAME: &str = "given_up_half_way";
    let (client, posts, sent) = observed(url, NAME).await;
    let admin = admin(url).await;
    let start = async || client.start_session().await.expect("starts");
    let elsewhere = |session: ClientSession| {
        thread::spawn(move || drop(session)).join().expect("does not panic");
    };

    let mut refused = start().await;
    let refuse = async |session: &mut mongodb::ClientSession| {
        posts.find_one(doc! {}).session(session).await?;
        Err::<(), _>(Error::custom("refused"))
    };
    refused.start_transaction().and_run2(refuse).await.expect_err("refuses");
    elsewhere(refused);
    sent.wait("killSessions", 1).await;
    none_is_open(&admin, NAME).await;

    let mut in_progress = start().await;
    in_progress.start_transaction().await.expect("starts");
    posts.find_one(doc! {}).session(&mut in_progress).await.expect("finds");
    elsewhere(in_progress);
    sent.wait("killSessions", 2).await;
    none_is_open(&admin, NAME).await;

    // Its commit, in the driver; and another one after it, of which the server never hears.
    let slow_commit = doc! {
        "configureFailPoint": "failCommand",
        "mode": { "times": 1 },
        "data": {
            "failCommands": ["commitTransaction"],
            "blockConnection": true, "blockTimeMS": 20_000, "appName": NAME,
        },
    };
    admin.run_command(slow_commit).await.expect("enableTestCommands is set");
    let mut committing = start().await;
    let insert = async |session: &mut mongodb::ClientSession| {
        posts.insert_one(doc! { "_id": 1 }).session(session).await.map(drop)
    };
    tokio::select! {
        result = committing.start_transaction().and_run2(insert) => panic!("{result:?}"),
        () = sent.wait("commitTransaction", 1) => {}
    }
    committing.start_transaction().await.expect("starts");
    committing.abort_transaction().await.expect("sends nothing");
    elsewhere(committing);
    sent.wait("killSessions", 3).await;
    none_is_open(&admin, NAME).await;

    // Its first command, after which the driver thinks that nothing has begun.
    let mut beginning = start().await;
    let finds = sent.count("find");
    beginning.start_transaction().await.expect("starts");
    tokio::select! {
        found = async { posts.find_one(slow(1_000)).session(&mut beginning).await } => panic!("{found:?}"),
        () = sent.wait("find", finds + 1) => {}
    }
    elsewhere(beginning);
    sent.wait("killSessions", 4).await;
    none_is_open(&admin, NAME).await;
    client.into_inner().shutdown().await;
    assert_eq!(sent.count("killSessions"), 4);
}
