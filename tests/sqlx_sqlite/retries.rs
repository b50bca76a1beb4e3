//! A loop that tries again what is refused yields, and is cut.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use futures_util::TryStreamExt;
use futures_util::future::LocalBoxFuture;
use request_budget::db::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Limit, Resource};
use sqlx::{Executor, Sqlite};

use crate::account::Ledger;
use crate::{is_refusal, pool, settle};

type Attempt = for<'a> fn(&'a Pool<Sqlite>) -> LocalBoxFuture<'a, sqlx::Result<()>>;

const TEXT: &str = "SELECT 1";

/// All ways to have something refused, each as often as one likes.
const ATTEMPTS: [(&str, Attempt); 14] = [
    ("execute", |pool| Box::pin(async { pool.execute(TEXT).await.map(drop) })),
    ("execute, prepared", |pool| {
        Box::pin(async { pool.execute(sqlx::query(TEXT)).await.map(drop) })
    }),
    ("execute_many", |pool| {
        Box::pin(async { pool.execute_many(TEXT).try_collect::<Vec<_>>().await.map(drop) })
    }),
    ("fetch", |pool| Box::pin(async { pool.fetch(TEXT).try_collect::<Vec<_>>().await.map(drop) })),
    ("fetch_many", |pool| {
        Box::pin(async { pool.fetch_many(TEXT).try_collect::<Vec<_>>().await.map(drop) })
    }),
    ("fetch_all", |pool| Box::pin(async { pool.fetch_all(TEXT).await.map(drop) })),
    ("fetch_one", |pool| Box::pin(async { pool.fetch_one(TEXT).await.map(drop) })),
    ("fetch_optional", |pool| Box::pin(async { pool.fetch_optional(TEXT).await.map(drop) })),
    ("connection: execute", |pool| {
        Box::pin(async {
            let mut connection = pool.acquire().await?;
            repeat(async || sqlx::query(TEXT).execute(&mut *connection).await.map(drop)).await
        })
    }),
    ("connection: fetch_optional", |pool| {
        Box::pin(async {
            let mut connection = pool.acquire().await?;
            repeat(async || connection.fetch_optional(TEXT).await.map(drop)).await
        })
    }),
    ("connection: fetch", |pool| {
        Box::pin(async {
            let mut connection = pool.acquire().await?;
            repeat(async || connection.fetch(TEXT).try_next().await.map(drop)).await
        })
    }),
    ("connection: begin", |pool| {
        Box::pin(async {
            let mut connection = pool.acquire().await?;
            repeat(async || connection.begin().await.map(drop)).await
        })
    }),
    ("transaction: fetch_all", |pool| {
        Box::pin(async {
            let mut transaction = pool.begin().await?;
            repeat(async || transaction.fetch_all(TEXT).await.map(drop)).await
        })
    }),
    ("begin", |pool| Box::pin(async { pool.begin().await.map(drop) })),
];

/// More refusals than this in one poll are a loop that never yields.
const MOST: u32 = 1_000;

/// Tries until it fails in another way, or for ever.
async fn repeat(mut attempt: impl AsyncFnMut() -> sqlx::Result<()>) -> sqlx::Result<()> {
    for _ in 0..MOST {
        match attempt().await {
            Err(error) if !is_refusal(&error) => return Err(error),
            _ => {}
        }
    }
    panic!("{MOST} tries, and nothing has ended them");
}

#[tokio::test]
async fn whatever_is_refused_the_work_that_tries_again_is_cut() {
    let pool = pool().await;
    for (name, attempt) in ATTEMPTS {
        for inside in [false, true] {
            let (ledger, tries) = (Ledger::default(), AtomicU32::new(0));
            let work = repeat(async || {
                tries.fetch_add(1, Relaxed);
                attempt(&pool).await
            });
            let hard = Budget::new().queries(Limit::hard(2)).transactions(Limit::hard(2));
            let cut = if inside {
                // The outer one refuses; the inner one goes on until it is dropped with it.
                let inner = work.budgeted("inner", Budget::new()).with_reporter(ledger.clone());
                inner.budgeted("outer", hard).await.map(drop).unwrap_err()
            } else {
                let work = work.budgeted("work", hard).with_reporter(ledger.clone());
                work.await.map(drop).unwrap_err()
            };
            let resource = cut.violation().resource;
            assert!([Resource::Queries, Resource::Transactions].contains(&resource), "{name}");
            assert_eq!(ledger.records().len(), 1, "{name}");
            assert!(tries.into_inner() <= 3, "{name}: tried again after it was refused");
        }
    }
    settle(&pool).await;
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_commit_that_is_refused_yields_as_well() {
    let pool = pool().await;
    let work = async {
        let transaction = pool.begin().await.unwrap();
        let mut refused = pin!(pool.execute(TEXT));
        // Told by a part of the work that is not asked first.
        while poll_fn(|_| Poll::Ready(poll_once(refused.as_mut()).is_pending())).await {}
        let mut commit = pin!(transaction.commit());
        assert!(poll_once(commit.as_mut()).is_pending());
        let Poll::Ready(Err(error)) = poll_once(commit.as_mut()) else { panic!("not refused") };
        assert!(is_refusal(&error), "{error}");
    };
    let budget = Budget::new().queries(Limit::hard(0));
    work.budgeted("work", budget).await.unwrap_err();
    settle(&pool).await;
}
