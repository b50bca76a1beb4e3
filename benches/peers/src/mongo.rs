//! Commands of MongoDB: plain, metered by pool events, and with a handler of command events.

use std::hint::black_box;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::event::EventHandler;
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection};
use request_budget::BudgetExt;
use tokio::runtime::Runtime;

use crate::layers::every_limit;
use crate::measure::{Side, interleave, print_ratios};

const MONGODB: &str = "REQUEST_BUDGET_MONGODB_URL";
const DATABASE: &str = "request_budget_peers";

/// Measures and prints all of it.
pub fn run(time: Duration) {
    let Ok(url) = std::env::var(MONGODB) else {
        println!("\nMongoDB: skipped, {MONGODB} is not set");
        return;
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let (plain, again, ours, events) = runtime.block_on(connect(&url));
    let posts = |client: &Client| client.database(DATABASE).collection::<Document>("posts");
    runtime.block_on(fill(&posts(&plain)));
    for documents in [1, 100, 1_000] {
        let turns = if documents == 1_000 { 2 } else { 10 };
        let round = |posts: &Collection<Document>| {
            runtime.block_on(async {
                let since = Instant::now();
                find(posts, documents, turns).await;
                since.elapsed().as_nanos() as f64 / f64::from(turns)
            })
        };
        let scoped = |posts: &Collection<Document>| scoped_round(&runtime, posts, documents, turns);
        let [plain, again, ours, events] =
            [&plain, &again, &*ours, &events].map(|client| posts(client));
        let sides = vec![
            Side::new("plain mongodb", || round(&plain)),
            Side::new("ours, in a scope with every limit", || scoped(&ours)),
            Side::new("a handler of command events that does nothing", || round(&events)),
            Side::new("plain mongodb, another client", || round(&again)),
        ];
        print_ratios(&format!("MongoDB: find of {documents}"), &interleave(sides, time));
    }
    runtime.block_on(async { plain.database(DATABASE).drop().await }).expect("drops");
}

async fn connect(url: &str) -> (Client, Client, request_budget::mongodb::Client, Client) {
    let plain = Client::with_uri_str(url).await.expect("connects");
    let again = Client::with_uri_str(url).await.expect("connects");
    let ours = request_budget::mongodb::Client::with_uri_str(url).await.expect("connects");
    let mut options = ClientOptions::parse(url).await.expect("is valid");
    options.command_event_handler = Some(EventHandler::callback(|event| drop(black_box(event))));
    (plain, again, ours, Client::with_options(options).expect("connects"))
}

fn scoped_round(
    runtime: &Runtime,
    posts: &Collection<Document>,
    documents: u32,
    turns: u32,
) -> f64 {
    runtime.block_on(async {
        let since = Instant::now();
        let all = find(posts, documents, turns).budgeted("bench", every_limit());
        all.await.expect("is not cut");
        since.elapsed().as_nanos() as f64 / f64::from(turns)
    })
}

async fn fill(posts: &Collection<Document>) {
    posts.drop().await.expect("drops");
    let post = |id: i32| {
        let title = format!("the title of post {id}");
        doc! { "_id": id, "title": title, "author": id % 7, "score": 0.5 }
    };
    posts.insert_many((1..=1_000).map(post)).await.expect("inserts");
}

async fn find(posts: &Collection<Document>, documents: u32, turns: u32) {
    for _ in 0..turns {
        let found = posts.find(doc! {}).limit(documents.into()).await.expect("finds");
        let found: Vec<_> = found.try_collect().await.expect("reads");
        assert_eq!(black_box(found).len(), documents as usize);
    }
}
