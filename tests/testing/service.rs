//! A small service with eight faults, and the same without them.

use std::hint::black_box;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, BudgetLayer};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Executor, Sqlite, SqlitePool};

type Query = sqlx::query::QueryScalar<'static, Sqlite, String, sqlx::sqlite::SqliteArguments>;

const FAULTY: &str = "faulty";

pub(crate) const IN_A_LOOP: u32 = line!() + 5;
async fn in_a_loop(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    let mut found = 0;
    if faulty {
        for id in 0..10 {
            found += name(id).fetch_all(pool).await.unwrap().len();
        }
        return found;
    }
    names().fetch_all(pool).await.unwrap().len()
}

pub(crate) const BEHIND_JOIN_ALL: u32 = line!() + 3;
async fn behind_join_all(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    if faulty {
        let found = join_all((0..10).map(async |id| name(id).fetch_one(pool).await.unwrap()));
        return found.await.len();
    }
    names().fetch_all(pool).await.unwrap().len()
}

pub(crate) const IN_A_SPAWNED_CHILD: u32 = line!() + 6;
async fn in_a_spawned_child(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    let pool = pool.clone();
    let child = async move {
        if faulty {
            for id in 0..10 {
                name(id).fetch_one(&pool).await.unwrap();
            }
        }
        names().fetch_all(&pool).await.unwrap().len()
    };
    tokio::spawn(child.in_current_budget()).await.unwrap()
}

pub(crate) const INSIDE_A_TRANSACTION: u32 = line!() + 5;
async fn inside_a_transaction(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    let mut tx = pool.begin().await.unwrap();
    if faulty {
        for id in 0..10 {
            name(id).fetch_one(&mut *tx).await.unwrap();
        }
    }
    let found = names().fetch_all(&mut *tx).await.unwrap().len();
    tx.commit().await.unwrap();
    found
}

pub(crate) const IN_A_REPOSITORY: u32 = line!() + 6;
/// What any executor can do.
async fn find<'e, E>(executor: E, id: i64) -> String
where
    E: Executor<'e, Database = Sqlite>,
{
    name(id).fetch_one(executor).await.unwrap()
}

pub(crate) const CALLER_OF_THE_REPOSITORY: u32 = line!() + 4;
async fn through_a_repository(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    if faulty {
        for id in 0..10 {
            find(pool, id).await;
        }
    }
    names().fetch_all(pool).await.unwrap().len()
}

pub(crate) const ON_AN_UNMETERED_POOL: u32 = line!() + 3;
async fn on_an_unmetered_pool(pool: &Pool<Sqlite>, plain: &SqlitePool, faulty: bool) -> usize {
    if faulty {
        return names().fetch_all(plain).await.unwrap().len();
    }
    names().fetch_all(pool).await.unwrap().len()
}

pub(crate) const AN_UNBOUNDED_SELECT: u32 = line!() + 3;
async fn an_unbounded_select(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    if faulty {
        return names().fetch_all(pool).await.unwrap().len();
    }
    let page = "SELECT name FROM authors ORDER BY id LIMIT 3";
    sqlx::query_scalar::<_, String>(page).fetch_all(pool).await.unwrap().len()
}

pub(crate) const A_MEMORY_HOG: u32 = line!() + 3;
async fn a_memory_hog(pool: &Pool<Sqlite>, faulty: bool) -> usize {
    if faulty {
        let mut export = Vec::with_capacity(8 << 20);
        let mut names = names().fetch(pool);
        while let Some(name) = names.try_next().await.unwrap() {
            export.extend_from_slice(name.as_bytes());
        }
        return black_box(export).len();
    }
    let mut length = 0;
    let mut names = names().fetch(pool);
    while let Some(name) = names.try_next().await.unwrap() {
        length += name.len();
    }
    length
}

fn name(id: i64) -> Query {
    sqlx::query_scalar("SELECT name FROM authors WHERE id = $1").bind(id)
}

fn names() -> Query {
    sqlx::query_scalar("SELECT name FROM authors ORDER BY id")
}

async fn answer(
    State(pool): State<Pool<Sqlite>>,
    Extension(plain): Extension<SqlitePool>,
    Path((what, how)): Path<(String, String)>,
) -> String {
    let faulty = how == FAULTY;
    let found = match &*what {
        "in_a_loop" => in_a_loop(&pool, faulty).await,
        "behind_join_all" => behind_join_all(&pool, faulty).await,
        "in_a_spawned_child" => in_a_spawned_child(&pool, faulty).await,
        "inside_a_transaction" => inside_a_transaction(&pool, faulty).await,
        "through_a_repository" => through_a_repository(&pool, faulty).await,
        "on_an_unmetered_pool" => on_an_unmetered_pool(&pool, &plain, faulty).await,
        "an_unbounded_select" => an_unbounded_select(&pool, faulty).await,
        "a_memory_hog" => a_memory_hog(&pool, faulty).await,
        _ => panic!("no such thing: {what}"),
    };
    found.to_string()
}

/// The service, over a database of its own with so many authors.
pub(crate) async fn service(authors: u32) -> Router {
    // One connection, since each has a database of its own.
    let options = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let [plain, metered] = [options.clone(), options].map(|options| async {
        let pool = options.connect_with(SqliteConnectOptions::new()).await.unwrap();
        pool.execute("CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT)").await.unwrap();
        for id in 0..authors {
            let insert = sqlx::query("INSERT INTO authors VALUES ($1, 'eve')");
            insert.bind(id).execute(&pool).await.unwrap();
        }
        pool
    });
    let plain = plain.await;
    Router::new()
        .route("/{what}/{how}", get(answer))
        .with_state(Pool::from(metered.await))
        .layer(Extension(plain))
        .layer(BudgetLayer::new(Budget::new()))
}
