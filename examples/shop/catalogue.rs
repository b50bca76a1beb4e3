//! Endpoints on the database, as anybody would write them with sqlx.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::app::{Problem, Shop};

#[derive(Debug, Serialize, FromRow)]
pub(crate) struct Post {
    id: i64,
    title: String,
    author: String,
}

#[derive(Debug, Serialize, FromRow)]
pub(crate) struct Comment {
    id: i64,
    post_id: i64,
    author_id: i64,
    body: String,
}

const POSTS: &str = "SELECT posts.id, title, name AS author FROM posts \
     JOIN authors ON authors.id = author_id ORDER BY posts.id LIMIT 100";

/// The listing with one statement.
pub(crate) async fn posts(State(shop): State<Shop>) -> Result<Json<Vec<Post>>, Problem> {
    Ok(Json(sqlx::query_as(POSTS).fetch_all(&shop.pool).await?))
}

/// The same listing with one statement for the posts and one more for the author of each.
pub(crate) async fn posts_n_plus_one(State(shop): State<Shop>) -> Result<Json<Vec<Post>>, Problem> {
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as("SELECT id, title, author_id FROM posts ORDER BY id LIMIT 100")
            .fetch_all(&shop.pool)
            .await?;
    let mut posts = Vec::new();
    for (id, title, author_id) in rows {
        let author = author(&shop, author_id).await?;
        posts.push(Post { id, title, author });
    }
    Ok(Json(posts))
}

/// The same mistake on more rows: past the hard limit no statement reaches the database.
pub(crate) async fn comments_n_plus_one(
    State(shop): State<Shop>,
) -> Result<Json<Vec<String>>, Problem> {
    let authors: Vec<i64> =
        sqlx::query_scalar("SELECT author_id FROM comments ORDER BY id DESC LIMIT 500")
            .fetch_all(&shop.pool)
            .await?;
    let mut names = Vec::new();
    for id in authors {
        names.push(author(&shop, id).await?);
    }
    Ok(Json(names))
}

async fn author(shop: &Shop, id: i64) -> sqlx::Result<String> {
    let query = sqlx::query_scalar("SELECT name FROM authors WHERE id = ?").bind(id);
    query.fetch_one(&shop.pool).await
}

/// One post and its first comments.
pub(crate) async fn post(
    State(shop): State<Shop>,
    Path(id): Path<i64>,
) -> Result<Json<(String, Vec<String>)>, Problem> {
    let title = sqlx::query_scalar("SELECT title FROM posts WHERE id = ?").bind(id);
    let title = title.fetch_optional(&shop.pool).await?.ok_or(Problem::not_found("post"))?;
    let comments =
        sqlx::query_scalar("SELECT body FROM comments WHERE post_id = ? ORDER BY id LIMIT 10")
            .bind(id)
            .fetch_all(&shop.pool)
            .await?;
    Ok(Json((title, comments)))
}

/// A SELECT without a limit: it was fast when the table was small.
pub(crate) async fn comments(State(shop): State<Shop>) -> Result<Json<Vec<Comment>>, Problem> {
    let query = sqlx::query_as("SELECT id, post_id, author_id, body FROM comments");
    Ok(Json(query.fetch_all(&shop.pool).await?))
}

/// The same rows as a stream: the route has a budget of its own, and never holds them all.
pub(crate) async fn export(State(shop): State<Shop>) -> Body {
    let query = "SELECT id || ',' || post_id || ',' || body || char(10) FROM comments";
    // Some hundred lines to a frame: frames are not free.
    Body::from_stream(lines(shop, query).try_chunks(500).map_ok(|lines| lines.concat()))
}

/// A body of many small frames; the request, and its account, end with the last one.
pub(crate) async fn feed(State(shop): State<Shop>) -> Body {
    Body::from_stream(lines(shop, "SELECT title || char(10) FROM posts ORDER BY id DESC LIMIT 200"))
}

fn lines(shop: Shop, query: &'static str) -> impl Stream<Item = sqlx::Result<String>> {
    async_stream::try_stream! {
        let mut rows = sqlx::query_scalar(query).fetch(&shop.pool);
        while let Some(line) = rows.try_next().await? {
            yield line;
        }
    }
}

/// One slow statement.
pub(crate) async fn report(State(shop): State<Shop>) -> Result<String, Problem> {
    let sum: i64 = sqlx::query_scalar(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) \
         SELECT sum(i) FROM n",
    )
    .fetch_one(&shop.pool)
    .await?;
    Ok(format!("{sum}\n"))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Order {
    customer: String,
    posts: Vec<i64>,
}

/// A transaction: the order and its items, or nothing.
pub(crate) async fn order(
    State(shop): State<Shop>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, String), Problem> {
    let mut tx = shop.pool.begin().await?;
    let insert = sqlx::query("INSERT INTO orders (customer, invoiced) VALUES (?, 0)");
    let id = insert.bind(order.customer).execute(&mut *tx).await?.last_insert_rowid();
    for post in order.posts {
        let insert = sqlx::query("INSERT INTO order_items VALUES (?, ?, 1)");
        insert.bind(id).bind(post).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok((StatusCode::CREATED, format!("order {id}\n")))
}
