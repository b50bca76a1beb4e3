//! What a driver, and the pool, do for themselves is no memory of the work.

use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use request_budget::report::{Climb, Growth, Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Violation};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;

use crate::alone::alone;
use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[("retained_is_nothing_on_postgres", |url| with_runtime(0, postgres(url)))],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("retained_is_nothing_on_mariadb", |url| with_runtime(0, mariadb(url)))],
    );
    suite.with_server(
        "REQUEST_BUDGET_MONGODB_URL",
        &[
            // The driver's part is told apart by what all threads hold that run MongoDB commands.
            ("growth_is_silent_on_mongodb", |url| {
                drop(alone("growth_is_silent_on_mongodb", || with_runtime(0, mongodb(url))));
            }),
            ("growth_is_silent_on_mongodb_where_jobs_run_beside_the_driver", |url| {
                with_runtime(2, mongodb_jobs(url));
            }),
        ],
    );
}

#[derive(Clone, Default)]
struct Retained(Arc<Mutex<Vec<u64>>>);

impl Reporter for Retained {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let retained = report.usage().retained.expect("memory is counted");
        self.0.lock().expect("not poisoned").push(retained);
    }
}

/// Runs a job that leaks nothing, then one that leaks 100 bytes each time.
macro_rules! retains_nothing {
    ($pool:expr) => {{
        let pool = $pool;
        let retained = Retained::default();
        let told = Arc::new(Mutex::new(Vec::<Climb>::new()));
        let keep = Arc::clone(&told);
        let growth = Growth::new();
        let growth = growth
            .with_listener(move |climb| keep.lock().expect("not poisoned").push(climb.clone()));
        let job = async || {
            let mut transaction = pool.begin().await.expect("begins");
            sqlx::query("SELECT 1").fetch_one(&mut *transaction).await.expect("fetches");
            transaction.commit().await.expect("commits");
            sqlx::query("SELECT 2").fetch_all(&pool).await.expect("fetches");
        };
        for _ in 0..10_000 {
            let work = job().budgeted("job", Budget::new());
            let work = work.with_reporter((growth.clone(), retained.clone()));
            work.await.expect("is not cut");
        }
        let all = std::mem::take(&mut *retained.0.lock().expect("not poisoned"));
        // Every few hundred runs the driver replaces the buffer that it reads into, by one that it
        // keeps.
        let later: Vec<_> = all[1..].iter().filter(|bytes| **bytes > 0).collect();
        assert!(later.len() < 100, "{later:?} of 9,999 runs");
        assert_eq!(*told.lock().expect("not poisoned"), []);

        let keep = Arc::clone(&told);
        let growth = Growth::new().bytes(128 << 10);
        let growth = growth
            .with_listener(move |climb| keep.lock().expect("not poisoned").push(climb.clone()));
        let mut kept = Vec::with_capacity(2_000);
        for _ in 0..2_000 {
            let work = async {
                job().await;
                kept.push(std::hint::black_box(Vec::<u8>::with_capacity(100)));
            };
            let work = work.budgeted("leak", Budget::new()).with_reporter(growth.clone());
            work.await.expect("is not cut");
        }
        assert!(!told.lock().expect("not poisoned").is_empty(), "the leak is reported");
    }};
}

async fn postgres(url: &str) {
    let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    retains_nothing!(Pool::from(plain));
}

async fn mariadb(url: &str) {
    let plain = MySqlPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    retains_nothing!(Pool::from(plain));
}

/// Keeps what `Growth` reports.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Climb>>>);

impl Told {
    fn growth(&self, growth: Growth) -> Growth {
        let keep = self.clone();
        growth.with_listener(move |climb| {
            keep.0.lock().expect("not poisoned").push(climb.clone());
        })
    }

    fn take(&self) -> Vec<Climb> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

async fn posts(url: &str) -> mongodb::Collection<Document> {
    let client = request_budget::mongodb::Client::with_uri_str(url).await.expect("connects");
    let name = format!("growth_{}", mongodb::bson::oid::ObjectId::new());
    let posts = client.database("request_budget").collection::<Document>(&name);
    let documents = (0..3).map(|id| doc! { "_id": id, "text": "hello" });
    posts.insert_many(documents).await.expect("inserts");
    posts
}

async fn find(posts: &mongodb::Collection<Document>) {
    posts.find_one(doc! { "_id": 1 }).await.expect("finds").expect("it is there");
}

/// What the driver frees in tasks of its own is no leak; a leak of 100 bytes in each run beside it
/// is found.
async fn mongodb(url: &str) {
    let (posts, told) = (posts(url).await, Told::default());
    let growth = told.growth(Growth::new());
    for _ in 0..10_000 {
        let work = find(&posts).budgeted("job", Budget::new());
        work.with_reporter(growth.clone()).await.expect("is not cut");
    }
    assert_eq!(told.take(), []);

    let growth = told.growth(Growth::new().bytes(128 << 10));
    let mut kept = Vec::with_capacity(2_000);
    for _ in 0..2_000 {
        let work = async {
            find(&posts).await;
            kept.push(std::hint::black_box(Vec::<u8>::with_capacity(100)));
        };
        let work = work.budgeted("leak", Budget::new()).with_reporter(growth.clone());
        work.await.expect("is not cut");
    }
    assert!(!told.take().is_empty(), "the leak is reported");
    posts.drop().await.expect("drops");
}

/// Jobs that never end on the threads of the driver's tasks, with commands that the driver handles
/// differently: with and without a cursor, reading and writing. They retain 12 MB, which the driver
/// frees elsewhere.
async fn mongodb_jobs(url: &str) {
    let (posts, told) = (posts(url).await, Told::default());
    let growth = told.growth(Growth::new());
    let commands = async |posts: &mongodb::Collection<Document>| {
        find(posts).await;
        let set = doc! { "$inc": { "n": 1 } };
        posts.update_one(doc! { "_id": 1 }, set).await.expect("updates");
        let cursor = posts.find(doc! {}).batch_size(2).await.expect("finds");
        assert_eq!(cursor.try_collect::<Vec<_>>().await.expect("fetches").len(), 3);
    };
    let jobs = async |posts: mongodb::Collection<Document>, growth: Growth| {
        for _ in 0..625 {
            let work = commands(&posts).budgeted("job", Budget::new());
            work.with_reporter(growth.clone()).await.expect("is not cut");
        }
    };
    let all = (0..4).map(|_| jobs(posts.clone(), growth.clone()));
    futures_util::future::join_all(all).await;
    assert_eq!(told.take(), []);
    posts.drop().await.expect("drops");
}
