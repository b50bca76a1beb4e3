//! What is compared after each round, once nothing is running any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;
use request_budget::sqlx::Pool;
use sqlx::{MySql, Postgres, Sqlite};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::Urls;
use crate::ledger::{Ledger, Store};
use crate::sql::{self, Sql};
use crate::works::Stores;

/// Within which everything that was cut is put in order, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(5);
/// Within which whatever is running comes to its end: no budget allows more than three seconds.
const LONGEST: Duration = Duration::from_secs(40);
const APP: &str = "soak";

/// Of this run: others may use the same server.
pub fn database() -> String {
    format!("soak_{}", std::process::id())
}

pub async fn mongo_client(url: &str) -> request_budget::mongodb::Client {
    let mut options = ClientOptions::parse(url).await.expect("is an address");
    options.app_name = Some(format!("{APP}_{}", std::process::id()));
    options.max_pool_size = Some(sql::CONNECTIONS);
    request_budget::mongodb::Client::with_options(options).expect("is a client")
}

pub struct Checks {
    pub urls: Urls,
    ledger: Arc<Ledger>,
    mongodb: Option<mongodb::Client>,
    mariadb: Option<String>,
}

impl Checks {
    pub fn new(urls: Urls, ledger: Arc<Ledger>) -> Self {
        Self { urls, ledger, mongodb: None, mariadb: None }
    }

    /// Makes databases of our own on servers that are not ours.
    pub async fn prepare(&mut self) {
        let name = database();
        if let Some(url) = &self.urls.mariadb {
            let other = <sqlx::MySqlConnection as sqlx::Connection>::connect(url);
            let mut other = other.await.expect("MariaDB answers");
            let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
            sqlx::raw_sql(create).execute(&mut other).await.expect("makes a database");
            self.mariadb = Some(url.clone());
            let (server, _) = url.rsplit_once('/').expect("names a database");
            self.urls.mariadb = Some(format!("{server}/{name}"));
        }
        if let Some(url) = &self.urls.mongodb {
            let client = mongodb::Client::with_uri_str(url).await.expect("MongoDB is there");
            // Collections that are made in transactions would make these wait for each other.
            client.database(&name).create_collection("soak").await.expect("MongoDB answers");
            self.mongodb = Some(client);
        }
    }

    /// Removes them.
    pub async fn tidy(&self) {
        let name = database();
        if let Some(client) = &self.mongodb {
            let client = client.database(&name);
            let dropped = client.drop();
            drop(timeout(PATIENCE, async { dropped.await }).await);
        }
        if let Some(url) = &self.mariadb
            && let Ok(mut other) = <sqlx::MySqlConnection as sqlx::Connection>::connect(url).await
        {
            let remove = sqlx::AssertSqlSafe(format!(
                "SET SESSION lock_wait_timeout = 3; DROP DATABASE {name}"
            ));
            drop(sqlx::raw_sql(remove).execute(&mut other).await);
        }
    }

    /// Waits for clients and jobs, and until everything that was started is reported.
    pub async fn drain(&self, tasks: Vec<JoinHandle<()>>) -> bool {
        let since = Instant::now();
        for task in tasks {
            let left = LONGEST.saturating_sub(since.elapsed());
            match timeout(left, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.ledger.fail("clients and jobs", || error.to_string()),
                Err(_) => {
                    self.ledger.fail("everything ends", || "clients or jobs still wait".to_owned());
                    break;
                }
            }
        }
        let ledger = &self.ledger;
        let is_over = || {
            let counts = [&ledger.open, &ledger.children, &ledger.reporters];
            counts.map(|count| count.load(Relaxed)) == [0; 3]
        };
        while !is_over() && since.elapsed() < LONGEST {
            sleep(Duration::from_millis(5)).await;
        }
        for open in ledger.unreported() {
            ledger.fail("reported once", || format!("not yet: {open}"));
        }
        let children = ledger.children.load(Relaxed);
        if children != 0 {
            ledger.fail("everything ends", || format!("{children} carried children are left"));
        }
        let reporters = ledger.reporters.load(Relaxed);
        if reporters != 0 {
            ledger.fail("no account left", || format!("{reporters} are kept by something"));
        }
        is_over()
    }

    /// All comparisons of a round.
    pub async fn run(&self, server: &Runtime, stores: &Arc<Stores>) {
        self.ledger.check_reports();
        self.check_threads(server).await;
        self.check_left().await;
        let pools = stores.clone();
        let found = server.spawn(async move { check_pools(&pools).await });
        match found.await {
            Ok(found) => found.into_iter().for_each(|found| {
                self.ledger.fail("connections come back clean", || found);
            }),
            Err(error) => self.ledger.fail("connections come back clean", || error.to_string()),
        }
        self.check_workers().await;
        self.check_rows().await;
    }

    /// Looks at the threads of the server from within.
    async fn check_threads(&self, server: &Runtime) {
        let look = || async { request_budget::Usage::current().is_some() };
        let looks: Vec<_> = (0..64).map(|_| server.spawn(look())).collect();
        for look in looks {
            if look.await.unwrap_or(true) {
                self.ledger.fail("no scope left", || "in a task of its own".to_owned());
            }
        }
    }

    /// The thread of each closed connection of SQLite ends, soon.
    async fn check_workers(&self) {
        let since = Instant::now();
        let mut workers = sqlite_workers();
        while workers > sql::CONNECTIONS as usize && since.elapsed() < PATIENCE {
            sleep(Duration::from_millis(20)).await;
            workers = sqlite_workers();
        }
        if workers > sql::CONNECTIONS as usize {
            self.ledger.fail("closed connections are gone", || format!("{workers} of SQLite"));
        }
    }

    /// Nothing is held or open in any database, soon.
    async fn check_left(&self) {
        let since = Instant::now();
        let mut left = self.left().await;
        while !left.is_empty() && since.elapsed() < PATIENCE {
            sleep(Duration::from_millis(50)).await;
            left = self.left().await;
        }
        for (store, left) in left {
            self.ledger.fail("no lock or transaction left", || format!("{}: {left}", store.name()));
        }
    }

    async fn left(&self) -> Vec<(Store, String)> {
        let mut all = Vec::new();
        let mut add = |store: Store, found: Result<Vec<String>, String>| match found {
            Ok(found) => all.extend(found.into_iter().map(|found| (store, found))),
            Err(error) => all.push((store, format!("cannot be asked: {error}"))),
        };
        if let Some(url) = &self.urls.sqlite {
            add(Store::Sqlite, Sqlite::left(url).await.map_err(|error| error.to_string()));
        }
        if let Some(url) = &self.urls.postgres {
            add(Store::Postgres, Postgres::left(url).await.map_err(|error| error.to_string()));
        }
        if let Some(url) = &self.urls.mariadb {
            let ids = self.ledger.ids("/mariadb/");
            add(Store::Mariadb, MySql::left(url).await.map_err(|error| error.to_string()));
            match sql::named_locks_in_mariadb(url, &ids).await {
                Ok(held) => {
                    let named = held
                        .into_iter()
                        .map(|id| format!("named lock of {}", self.ledger.describe(id)));
                    add(Store::Mariadb, Ok(named.collect()));
                }
                Err(error) => add(Store::Mariadb, Err(error.to_string())),
            }
        }
        if let Some(client) = &self.mongodb {
            let open = open_transactions(client).await;
            add(Store::Mongodb, open.map_err(|error| error.to_string()));
        }
        all
    }

    /// What is in the databases, asked through connections that no work has had.
    async fn check_rows(&self) {
        let round = self.ledger.round();
        if let Some(url) = &self.urls.sqlite {
            self.compare(Store::Sqlite, Sqlite::rows(url, round).await.map_err(|e| e.to_string()));
        }
        if let Some(url) = &self.urls.postgres {
            let rows = Postgres::rows(url, round).await;
            self.compare(Store::Postgres, rows.map_err(|error| error.to_string()));
        }
        if let Some(url) = &self.urls.mariadb {
            self.compare(Store::Mariadb, MySql::rows(url, round).await.map_err(|e| e.to_string()));
        }
        if let Some(client) = &self.mongodb {
            let rows = mongo_rows(client, round).await;
            self.compare(Store::Mongodb, rows.map_err(|error| error.to_string()));
        }
    }

    fn compare(&self, store: Store, rows: Result<HashMap<i64, i64>, String>) {
        match rows {
            Ok(rows) => self.ledger.check_rows(store, &rows),
            Err(error) => {
                self.ledger.fail("rows can be read", || format!("{}: {error}", store.name()));
            }
        }
    }
}

/// How many connections to SQLite there are in this process, each of which has a thread.
fn sqlite_workers() -> usize {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("comm")));
    // As much of the name as the kernel keeps.
    names.flatten().filter(|name| name.starts_with("sqlx-sqlite")).count()
}

async fn open_transactions(client: &mongodb::Client) -> mongodb::error::Result<Vec<String>> {
    let name = format!("{APP}_{}", std::process::id());
    let is_left = doc! { "appName": name, "transaction": { "$exists": true } };
    let pipeline = [doc! { "$currentOp": { "idleSessions": true } }, doc! { "$match": is_left }];
    let open: Vec<Document> =
        client.database("admin").aggregate(pipeline).await?.try_collect().await?;
    Ok(open.iter().map(|open| format!("transaction {open}")).collect())
}

async fn mongo_rows(
    client: &mongodb::Client,
    round: i64,
) -> mongodb::error::Result<HashMap<i64, i64>> {
    let rows = client.database(&database()).collection::<Document>("soak");
    let mut cursor = rows.find(doc! { "round": round }).await?;
    let mut counts = HashMap::new();
    while let Some(row) = cursor.try_next().await? {
        *counts.entry(row.get_i64("work").unwrap_or(-1)).or_insert(0) += 1;
    }
    Ok(counts)
}

async fn check_pools(stores: &Stores) -> Vec<String> {
    async fn one<DB: Sql>(pool: &Option<Pool<DB>>) -> Vec<String> {
        let Some(pool) = pool else { return Vec::new() };
        let found = sql::check_pool::<DB>(pool.unmetered()).await;
        found.into_iter().map(|found| format!("{}: {found}", DB::STORE.name())).collect()
    }
    let mut found = one(&stores.sqlite).await;
    found.extend(one(&stores.postgres).await);
    found.extend(one(&stores.mariadb).await);
    found
}
