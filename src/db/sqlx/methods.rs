//! What a driver's connection does as an executor, as plain functions.
//!
//! The executors of this crate call these instead of asking for `&mut DB::Connection: Executor`:
//! with that bound on an impl of `Executor` for `&mut Connection<DB>`, rustc looks for a connection
//! of ours inside one of ours and so on, and fails with E0275 in code that is generic over the
//! database, even if that code uses plain sqlx. So the bound is required where a pool or connection
//! is wrapped, and its methods are kept as function pointers.

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::{Database, Describe, Executor, SqlStr};

use super::request::Request;
use super::stream::Step;

type Answer<'c, T> = BoxFuture<'c, sqlx::Result<T>>;

/// The methods of a driver's connection.
pub(super) struct Methods<DB: Database> {
    pub(super) execute: Execute<DB>,
    pub(super) fetch_many: FetchMany<DB>,
    pub(super) fetch_optional: FetchOptional<DB>,
    pub(super) prepare_with: PrepareWith<DB>,
    pub(super) describe: DescribeText<DB>,
}

type Execute<DB> = for<'c> fn(
    &'c mut <DB as Database>::Connection,
    Request<DB>,
) -> Answer<'c, <DB as Database>::QueryResult>;

type FetchMany<DB> = for<'c> fn(
    &'c mut <DB as Database>::Connection,
    Request<DB>,
) -> BoxStream<'c, sqlx::Result<Step<DB>>>;

type FetchOptional<DB> = for<'c> fn(
    &'c mut <DB as Database>::Connection,
    Request<DB>,
) -> Answer<'c, Option<<DB as Database>::Row>>;

type PrepareWith<DB> = for<'c> fn(
    &'c mut <DB as Database>::Connection,
    SqlStr,
    &'c [<DB as Database>::TypeInfo],
) -> Answer<'c, <DB as Database>::Statement>;

type DescribeText<DB> =
    for<'c> fn(&'c mut <DB as Database>::Connection, SqlStr) -> Answer<'c, Describe<DB>>;

/// A database whose connections are executors.
///
/// A trait of its own for where the database is not known yet, as in `Pool::from(pool.clone())`:
/// with the bound on the connection, rustc looks for it among all impls of `Executor` even so, and
/// fails with E0275 if another crate has one for a connection around one of any database
/// (sqlx-otel).
pub(super) trait Executes: Database {
    fn methods() -> &'static Methods<Self>;
}

impl<DB: Database> Executes for DB
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    fn methods() -> &'static Methods<Self> {
        Methods::of_driver()
    }
}

impl<DB> Methods<DB>
where
    DB: Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    const OF_DRIVER: Self = Self {
        execute: |connection, request| connection.execute(request),
        fetch_many: |connection, request| connection.fetch_many(request),
        fetch_optional: |connection, request| connection.fetch_optional(request),
        prepare_with: |connection, sql, parameters| connection.prepare_with(sql, parameters),
        describe: |connection, sql| connection.describe(sql),
    };

    /// Those of the driver of this database.
    pub(super) fn of_driver() -> &'static Self {
        &Self::OF_DRIVER
    }
}
