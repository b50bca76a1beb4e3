//! What handlers and jobs do: each kind ends whole, and may be cut at any point.

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt, stream};
use mongodb::bson::{Document, doc};
use mongodb::options::WriteConcern;
use request_budget::sqlx::{Pool, PoolConnection};
use request_budget::{Cut, ExternalExt, task};
use sqlx::{MySql, Postgres, Sqlite};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::errors;
use crate::ledger::{Key, Store, Work};
use crate::sql::{Sql, read_some};

pub type Done = Result<(), Box<dyn Error + Send + Sync>>;

/// What all handlers share.
#[derive(Clone)]
pub struct Stores {
    pub sqlite: Option<Pool<Sqlite>>,
    pub postgres: Option<Pool<Postgres>>,
    pub mariadb: Option<Pool<MySql>>,
    pub mongodb: Option<Mongo>,
    /// Accepts and says nothing.
    pub silent: SocketAddr,
}

#[derive(Clone)]
pub struct Mongo {
    pub client: request_budget::mongodb::Client,
    pub database: String,
}

impl Mongo {
    fn rows(&self) -> mongodb::Collection<Document> {
        self.client.database(&self.database).collection("soak")
    }
}

/// The kinds of work with an SQL database.
pub const SQL: [&str; 17] = [
    "insert",
    "tx",
    "savepoint",
    "lock",
    "session",
    "hand_begin",
    "begin_dropped",
    "savepoint_dropped",
    "statement_dropped",
    "stream",
    "body",
    "retry",
    "carried",
    "panic",
    "slow",
    "copy",
    "two_connections",
];
pub const MONGODB: [&str; 5] = ["insert", "tx", "convenient", "find", "carried"];
pub const OTHER: [&str; 6] = ["hello", "external", "external_retry", "memory", "panic", "all"];

/// Whether a database has this kind.
pub fn has(store: Store, kind: &str) -> bool {
    match store {
        Store::Mongodb => MONGODB.contains(&kind),
        _ => SQL.contains(&kind) && (kind != "copy" || store == Store::Postgres),
    }
}

/// Whether the error is a refusal of ours.
fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    Cut::find(error).is_some()
}

/// Polls a future a few times and drops it: what a `timeout` or `select!` of the user's does.
async fn polled<F: Future>(times: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..=times {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// One row in a transaction of its own.
async fn insert<DB: Sql>(pool: &Pool<DB>, work: &Work) -> Done {
    let key = work.write(DB::STORE, 1);
    work.commits(key);
    work.step("insert");
    DB::execute_on_pool(pool, DB::TEXTS.insert, &row(work, key, 0)).await?;
    work.committed(key);
    Ok(())
}

fn row(work: &Work, key: Key, part: i64) -> [i64; 3] {
    [work.ledger().round(), key.0, part]
}

/// Three rows that are there together or not at all.
async fn transact<DB: Sql>(pool: &Pool<DB>, work: &Work) -> Done {
    let key = work.write(DB::STORE, 3);
    work.step("begin");
    let mut tx = pool.begin().await?;
    for part in 0..3 {
        work.step("insert in a transaction");
        DB::execute(&mut tx, DB::TEXTS.insert, &row(work, key, part)).await?;
        work.pause("between inserts in a transaction").await;
    }
    match work.random.below(8) {
        0 => tx.rollback().await?,
        1 => drop(tx),
        _ => {
            work.commits(key);
            work.step("commit");
            tx.commit().await?;
            work.committed(key);
        }
    }
    Ok(())
}

/// One of the kinds in [`SQL`] that answer with no body of their own.
pub async fn run<DB: Sql>(kind: &str, pool: Pool<DB>, work: &Work) -> Done {
    let texts = &DB::TEXTS;
    match kind {
        "insert" => insert(&pool, work).await?,
        "tx" => transact(&pool, work).await?,
        "savepoint" => savepoint(&pool, work).await?,
        "lock" => {
            let Some((lock, unlock)) = texts.lock else { return Ok(()) };
            let mut connection = pool.acquire().await?;
            let id = work.id as i64;
            let done = async {
                work.step("lock");
                DB::execute(&mut connection, lock, &[id]).await?;
                work.pause("locked").await;
                write_on(&mut connection, work).await?;
                work.pause("locked, before the unlock").await;
                DB::execute(&mut connection, unlock, &[id]).await?;
                work.step("unlocked");
                Ok(())
            };
            let done = done.await;
            end(connection, work, done)?;
        }
        "session" => {
            let mut connection = pool.acquire().await?;
            match DB::number(&mut connection, texts.changes).await? {
                0 => {}
                n => work.ledger().fail("connections are given out clean", || {
                    format!("{n} changes of the session, in {}", DB::STORE.name())
                }),
            }
            let done = async {
                for change in texts.change {
                    work.step("change of the session");
                    DB::execute_raw(&mut connection, change).await?;
                    work.pause("between changes of the session").await;
                }
                write_on(&mut connection, work).await?;
                for restore in texts.restore {
                    work.pause("before the session is restored").await;
                    DB::execute_raw(&mut connection, restore).await?;
                }
                work.step("session restored");
                Ok(())
            };
            let done = done.await;
            end(connection, work, done)?;
        }
        "hand_begin" => {
            let mut connection = pool.acquire().await?;
            let key = work.write(DB::STORE, 2);
            let done = async {
                work.step("BEGIN by hand");
                DB::execute_raw(&mut connection, texts.begin).await?;
                for part in 0..2 {
                    DB::execute(&mut connection, texts.insert, &row(work, key, part)).await?;
                    work.pause("between inserts after BEGIN by hand").await;
                }
                work.commits(key);
                work.step("COMMIT by hand");
                DB::execute_raw(&mut connection, "COMMIT").await?;
                work.committed(key);
                Ok(())
            };
            let done = done.await;
            end(connection, work, done)?;
        }
        "begin_dropped" => begin_dropped(&pool, work).await?,
        "savepoint_dropped" => {
            let key = work.write(DB::STORE, 2);
            let mut tx = pool.begin().await?;
            DB::execute(&mut tx, texts.insert, &row(work, key, 0)).await?;
            work.step("a savepoint that is dropped");
            drop(polled(work.random.below(3), tx.begin()).await);
            work.step("insert after a savepoint that was dropped");
            DB::execute(&mut tx, texts.insert, &row(work, key, 1)).await?;
            work.pause("before the commit").await;
            work.commits(key);
            tx.commit().await?;
            work.committed(key);
        }
        "statement_dropped" => {
            let mut connection = pool.acquire().await?;
            work.step("a statement that is dropped");
            let patience = Duration::from_millis(work.random.below(4));
            let slow = DB::execute(&mut connection, texts.slow, &[]);
            drop(tokio::time::timeout(patience, slow).await);
            if work.random.one_in(2) {
                // On a connection that may have an answer to come.
                write_on(&mut connection, work).await?;
            }
            drop(connection);
            insert(&pool, work).await?;
        }
        "slow" => {
            for _ in 0..3 {
                work.step("slow statement");
                DB::execute_on_pool(&pool, texts.slow, &[]).await?;
            }
        }
        "stream" => {
            let most = work.random.below(2_500) as usize;
            read_some(&pool, most, work).await?;
        }
        "retry" => retry(&pool, work).await?,
        "carried" => {
            let mut children = JoinSet::new();
            for _ in 0..3 {
                let (pool, own, guard) = (pool.clone(), work.clone(), work.child());
                let child = async move {
                    let result = transact(&pool, &own).await;
                    drop(guard);
                    result
                };
                children.spawn(request_budget::BudgetExt::in_current_budget(child));
            }
            if work.random.one_in(4) {
                children.detach_all();
            }
            for result in children.join_all().await {
                result?;
            }
        }
        "panic" => {
            let key = work.write(DB::STORE, 1);
            if work.random.one_in(2) {
                let mut tx = pool.begin().await?;
                DB::execute(&mut tx, texts.insert, &row(work, key, 0)).await?;
                work.step("panic in a transaction");
                panic!("{}: a handler with a transaction", crate::ON_PURPOSE);
            }
            let mut connection = pool.acquire().await?;
            let done = async {
                DB::execute_raw(&mut connection, texts.change[0]).await?;
                DB::execute_raw(&mut connection, texts.begin).await?;
                DB::execute(&mut connection, texts.insert, &row(work, key, 0)).await?;
                work.step("panic after changes of the session");
                panic!("{}: a handler with a changed session", crate::ON_PURPOSE);
            };
            let done = done.await;
            end(connection, work, done)?;
        }
        "copy" => {
            let mut connection = pool.acquire().await?;
            let key = work.write(DB::STORE, 20);
            let line = |part| format!("{}\t{}\t{part}\n", work.ledger().round(), key.0);
            let data: String = (0..20).map(line).collect();
            let pause = Box::pin(work.pause("within COPY"));
            let finishes = Box::new(|| work.commits(key));
            work.step("COPY");
            DB::copy(&mut connection, data.as_bytes(), pause, finishes).await?;
            work.committed(key);
        }
        "two_connections" => {
            // One inside of the other, as a helper that takes the pool does: bounded by its
            // patience.
            let key = work.write(DB::STORE, 1);
            let mut connection = pool.acquire().await?;
            work.pause("with one connection").await;
            if DB::STORE != Store::Sqlite {
                insert(&pool, work).await?;
            }
            work.commits(key);
            DB::execute(&mut connection, texts.insert, &row(work, key, 0)).await?;
            work.committed(key);
        }
        other => unreachable!("no such kind: {other}"),
    }
    Ok(())
}

/// Has a connection closed on which something has failed, as nobody knows its session then: work
/// that ends by itself gives back what it holds as it is.
fn end<DB: Sql>(mut connection: PoolConnection<DB>, work: &Work, done: Done) -> Done {
    if done.is_err() {
        connection.close_on_drop();
        work.ledger().totals.closed[DB::STORE as usize].fetch_add(1, Relaxed);
    }
    done
}

async fn write_on<DB: Sql>(
    connection: &mut request_budget::sqlx::Connection<DB>,
    work: &Work,
) -> Done {
    let key = work.write(DB::STORE, 1);
    work.commits(key);
    DB::execute(connection, DB::TEXTS.insert, &row(work, key, 0)).await?;
    work.committed(key);
    Ok(())
}

async fn savepoint<DB: Sql>(pool: &Pool<DB>, work: &Work) -> Done {
    let text = DB::TEXTS.insert;
    let (outer, inner) = (work.write(DB::STORE, 2), work.write(DB::STORE, 1));
    let mut tx = pool.begin().await?;
    DB::execute(&mut tx, text, &row(work, outer, 0)).await?;
    work.pause("before a savepoint").await;
    let mut savepoint = tx.begin().await?;
    DB::execute(&mut savepoint, text, &row(work, inner, 0)).await?;
    work.pause("in a savepoint").await;
    let is_kept = match work.random.below(3) {
        0 => {
            savepoint.rollback().await?;
            false
        }
        1 => {
            drop(savepoint);
            false
        }
        _ => {
            savepoint.commit().await?;
            true
        }
    };
    DB::execute(&mut tx, text, &row(work, outer, 1)).await?;
    work.pause("after a savepoint").await;
    work.commits(outer);
    if is_kept {
        work.commits(inner);
    }
    tx.commit().await?;
    work.committed(outer);
    if is_kept {
        work.committed(inner);
    }
    Ok(())
}

/// A `begin` of the user's that is given up; what is written afterwards must last.
async fn begin_dropped<DB: Sql>(pool: &Pool<DB>, work: &Work) -> Done {
    let times = work.random.below(4);
    if work.random.one_in(2) {
        work.step("a begin of the pool that is dropped");
        drop(polled(times, pool.begin()).await);
    } else {
        let mut connection = pool.acquire().await?;
        work.step("a begin of a connection that is dropped");
        drop(polled(times, connection.begin()).await);
        work.step("insert on a connection whose begin was dropped");
        if work.random.one_in(2) {
            write_on(&mut connection, work).await?;
        }
    }
    for _ in 0..2 {
        insert(pool, work).await?;
    }
    Ok(())
}

/// Asks for what a hard limit refuses, until the cut comes.
async fn retry<DB: Sql>(pool: &Pool<DB>, work: &Work) -> Done {
    let text = DB::TEXTS.slow;
    work.step("retries");
    let mut connection = pool.acquire().await?;
    let way = work.random.below(5);
    loop {
        let result: sqlx::Result<()> = match way {
            0 => DB::execute(&mut connection, text, &[]).await,
            1 => DB::execute_on_pool(pool, text, &[]).await,
            2 => connection.begin().await.map(drop),
            3 => pool.begin().await.map(drop),
            _ => match connection.begin().await {
                Ok(mut tx) => match DB::execute(&mut tx, text, &[]).await {
                    Ok(()) => tx.commit().await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        match result {
            Err(error) if !is_refusal(&error) => return Err(error.into()),
            _ => {}
        }
    }
}

/// A body that holds a connection, with a lock where there are any, until its end.
pub async fn body<DB: Sql>(
    pool: Pool<DB>,
    work: Work,
) -> Result<Body, Box<dyn Error + Send + Sync>> {
    let mut connection = pool.acquire().await?;
    let id = work.id as i64;
    if let Some((lock, _)) = DB::TEXTS.lock {
        DB::execute(&mut connection, lock, &[id]).await?;
    }
    let pieces = stream::try_unfold((connection, work, 0), move |(mut connection, work, piece)| {
        async move {
            if piece == 12 {
                if let Some((_, unlock)) = DB::TEXTS.lock {
                    DB::execute(&mut connection, unlock, &[id]).await?;
                }
                return Ok::<_, sqlx::Error>(None);
            }
            DB::number(&mut connection, DB::TEXTS.changes).await?;
            work.pause("between pieces of a body").await;
            Ok(Some((Bytes::from_static(&[b'x'; 100]), (connection, work, piece + 1))))
        }
        .boxed()
    });
    Ok(Body::from_stream(pieces))
}

fn document(work: &Work, key: Key, part: i64) -> Document {
    let id = format!("{}:{part}", key.0);
    doc! { "_id": id, "round": work.ledger().round(), "work": key.0, "part": part }
}

type Context = (mongodb::Collection<Document>, Work, Key);

fn in_convenient_transaction<'a>(
    session: &'a mut mongodb::ClientSession,
    (rows, work, key): &'a mut Context,
) -> BoxFuture<'a, mongodb::error::Result<()>> {
    async move {
        for part in 0..2 {
            rows.insert_one(document(work, *key, part)).session(&mut *session).await?;
            work.pause("between inserts in a convenient transaction").await;
        }
        work.commits(*key);
        Ok(())
    }
    .boxed()
}

/// One of the kinds in [`MONGODB`].
pub async fn run_mongo(kind: &str, mongo: Mongo, work: &Work) -> Done {
    let rows = mongo.rows();
    match kind {
        "insert" => {
            let key = work.write(Store::Mongodb, 1);
            work.commits(key);
            work.step("insert");
            rows.insert_one(document(work, key, 0)).await?;
            work.committed(key);
        }
        "tx" => {
            let key = work.write(Store::Mongodb, 3);
            let mut session = mongo.client.start_session().await?;
            session.start_transaction().write_concern(WriteConcern::majority()).await?;
            for part in 0..3 {
                work.step("insert in a transaction");
                rows.insert_one(document(work, key, part)).session(&mut session).await?;
                work.pause("between inserts in a transaction").await;
            }
            if work.random.one_in(6) {
                session.abort_transaction().await?;
            } else {
                work.commits(key);
                work.step("commit");
                session.commit_transaction().await?;
                work.committed(key);
            }
        }
        "convenient" => {
            let key = work.write(Store::Mongodb, 2);
            let mut session = mongo.client.start_session().await?;
            // Commits in the driver.
            let context = (rows, work.clone(), key);
            session.start_transaction().and_run(context, in_convenient_transaction).await?;
            work.committed(key);
        }
        "find" => {
            let mut cursor = rows.find(doc! {}).batch_size(20).limit(200).await?;
            while cursor.try_next().await?.is_some() {
                if work.random.one_in(20) {
                    work.pause("between documents").await;
                }
            }
        }
        "carried" => {
            let mut children = Vec::new();
            for _ in 0..3 {
                let (rows, own, guard) = (rows.clone(), work.clone(), work.child());
                let key = work.write(Store::Mongodb, 1);
                let row = document(work, key, 0);
                children.push(task::spawn(async move {
                    own.commits(key);
                    let result = rows.insert_one(row).await;
                    if result.is_ok() {
                        own.committed(key);
                    }
                    drop(guard);
                    result
                }));
            }
            for child in children {
                child.await??;
            }
        }
        other => unreachable!("no such kind: {other}"),
    }
    Ok(())
}

/// One of the kinds in [`OTHER`].
pub async fn run_other(kind: &str, stores: &Stores, work: &Work) -> Done {
    match kind {
        "hello" => {}
        "external" => {
            let call = ask(stores.silent).external("silent");
            work.step("external call");
            drop(call.await?);
        }
        // Until the cut comes.
        "external_retry" => loop {
            work.step("retries an external call");
            let call = async { TcpStream::connect("127.0.0.1:1").await };
            drop(call.external("nobody").await);
        },
        "memory" => {
            let mut held = Vec::new();
            for _ in 0..64 {
                held.push(vec![1_u8; 256 << 10]);
                work.pause("between allocations").await;
            }
            std::hint::black_box(held);
        }
        "panic" => panic!("{}: a handler", crate::ON_PURPOSE),
        "all" => all(stores, work).await?,
        other => unreachable!("no such kind: {other}"),
    }
    Ok(())
}

/// Writes to every database, one after the other, inside a transaction of the next.
async fn all(stores: &Stores, work: &Work) -> Done {
    if let Some(pool) = &stores.sqlite {
        insert(pool, work).await?;
        work.pause("after sqlite").await;
    }
    if let Some(pool) = &stores.postgres {
        transact(pool, work).await?;
        work.pause("after postgres").await;
    }
    if let Some(pool) = &stores.mariadb {
        transact(pool, work).await?;
        work.pause("after mariadb").await;
    }
    if let Some(mongo) = &stores.mongodb {
        run_mongo("tx", mongo.clone(), work).await?;
    }
    Ok(())
}

async fn ask(silent: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(silent).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map(drop)
}

/// What a request for this path does; `None` for a kind that answers with a body of its own.
pub async fn dispatch(path: &str, stores: Arc<Stores>, work: Work) -> Done {
    let (store, kind) = path.trim_start_matches('/').split_once('/').expect("two parts");
    // In boxes: the future of each would be as large as the largest.
    let done = match store {
        "sqlite" => Box::pin(run(kind, stores.sqlite.clone().expect(ON), &work)).await,
        "postgres" => Box::pin(run(kind, stores.postgres.clone().expect(ON), &work)).await,
        "mariadb" => Box::pin(run(kind, stores.mariadb.clone().expect(ON), &work)).await,
        "mongodb" => Box::pin(run_mongo(kind, stores.mongodb.clone().expect(ON), &work)).await,
        _ => Box::pin(run_other(kind, &stores, &work)).await,
    };
    if let Err(error) = &done
        && !errors::is_to_be_expected(path, &**error)
    {
        let ledger = work.ledger();
        ledger.fail("only errors to be expected", || {
            format!("{error:?}: {}", ledger.describe(work.id))
        });
    }
    done
}

pub const ON: &str = "only what is on has routes";
