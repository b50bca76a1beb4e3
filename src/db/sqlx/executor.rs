//! What makes pools and connections accept every kind of sqlx query.
//!
//! Each method is forwarded to the driver's own, which may be better than the trait's default:
//! `fetch_optional` asks some servers for one row only.

use std::future::poll_fn;
use std::pin::Pin;

use async_stream::try_stream;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::{Database, Describe, Execute, Executor, SqlStr};

use super::borrowed::BorrowedConnection;
use super::boxed::Boxed;
use super::connection::Connection;
use super::execution::{Execution, uncounted};
use super::pool::Pool;
use super::refuse;
use super::request::Request;
use super::session::Handle;
use super::stream::{Results, Rows, Step};
use crate::db::Begun;
use crate::db::driver::Driver;

/// What has a connection, and gives it out as a [`Handle`], as an executor.
macro_rules! connection_executor {
    (<$($lifetime:lifetime,)* $DB:ident> $connection:ty) => {
        impl<'c, $($lifetime,)* $DB: Database> Executor<'c> for &'c mut $connection {
            type Database = $DB;

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, sqlx::Result<$DB::QueryResult>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $DB>,
            {
                Box::pin(execute::<$DB>(self.handle(), Request::new(query), None))
            }

            fn execute_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<'e, sqlx::Result<$DB::QueryResult>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $DB>,
            {
                let (handle, request) = (self.handle(), Request::new(query));
                let mut results = Results::<$DB>::new(handle, request, None, Rows::ThrownAway);
                Box::pin(try_stream! {
                    while let Some(step) = next(&mut results).await {
                        if let Step::<$DB>::Left(result) = step? {
                            yield result;
                        }
                    }
                })
            }

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<'e, sqlx::Result<Step<$DB>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $DB>,
            {
                let (handle, request) = (self.handle(), Request::new(query));
                Box::pin(Results::<$DB>::new(handle, request, None, Rows::HandedOut))
            }

            fn fetch_all<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, sqlx::Result<Vec<$DB::Row>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $DB>,
            {
                Box::pin(fetch_all::<$DB>(self.handle(), Request::new(query), None))
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, sqlx::Result<Option<$DB::Row>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $DB>,
            {
                Box::pin(fetch_optional::<$DB>(self.handle(), Request::new(query), None))
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [$DB::TypeInfo],
            ) -> BoxFuture<'e, sqlx::Result<$DB::Statement>>
            where
                'c: 'e,
            {
                let handle = self.handle();
                let methods = handle.methods();
                let (connection, interrupted) = handle.into_parts();
                let prepared = (methods.prepare_with)(connection, sql, parameters);
                Box::pin(uncounted(Driver::for_itself(prepared), interrupted))
            }

            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<$DB>>>
            where
                'c: 'e,
            {
                let handle = self.handle();
                let methods = handle.methods();
                let (connection, interrupted) = handle.into_parts();
                let described = (methods.describe)(connection, sql);
                Box::pin(uncounted(Driver::for_itself(described), interrupted))
            }
        }
    };
}

connection_executor!(<DB> Connection<DB>);
connection_executor!(<'r, DB> BorrowedConnection<'r, DB>);

/// Waits for a connection, then does as the connection does.
impl<'p, DB: Database> Executor<'p> for &Pool<DB> {
    type Database = DB;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<DB::QueryResult>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let (pool, request) = (self.clone(), Request::new(query));
        Boxed::pin(|| async move {
            let (mut connection, begun) = pool.checkout().await?;
            execute::<DB>(connection.handle(), request, Some(begun)).await
        })
    }

    fn execute_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<DB::QueryResult>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let (pool, request) = (self.clone(), Request::new(query));
        Boxed::pin(|| {
            try_stream! {
                let (mut connection, begun) = pool.checkout().await?;
                let mut results =
                    Results::<DB>::new(connection.handle(), request, Some(begun), Rows::ThrownAway);
                while let Some(step) = next(&mut results).await {
                    if let Step::<DB>::Left(result) = step? {
                        yield result;
                    }
                }
            }
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step<DB>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let (pool, request) = (self.clone(), Request::new(query));
        Boxed::pin(|| {
            try_stream! {
                let (mut connection, begun) = pool.checkout().await?;
                let mut results =
                    Results::<DB>::new(connection.handle(), request, Some(begun), Rows::HandedOut);
                while let Some(step) = next(&mut results).await {
                    yield step?;
                }
            }
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Vec<DB::Row>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let (pool, request) = (self.clone(), Request::new(query));
        Boxed::pin(|| async move {
            let (mut connection, begun) = pool.checkout().await?;
            fetch_all::<DB>(connection.handle(), request, Some(begun)).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<DB::Row>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let (pool, request) = (self.clone(), Request::new(query));
        Boxed::pin(|| async move {
            let (mut connection, begun) = pool.checkout().await?;
            fetch_optional::<DB>(connection.handle(), request, Some(begun)).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<DB::Statement>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Boxed::pin(|| async move { pool.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<DB>>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Boxed::pin(|| async move { pool.acquire().await?.describe(sql).await })
    }
}

async fn execute<DB: Database>(
    mut connection: Handle<'_, DB>,
    request: Request<DB>,
    begun: Option<Begun>,
) -> sqlx::Result<DB::QueryResult> {
    if request.may_be_batch() {
        // Statement by statement, to count each.
        let mut results = Results::<DB>::new(connection, request, begun, Rows::ThrownAway);
        let mut total = DB::QueryResult::default();
        while let Some(step) = next(&mut results).await {
            if let Step::<DB>::Left(result) = step? {
                total.extend([result]);
            }
        }
        return Ok(total);
    }
    connection.settle().await?;
    connection.note(request.text(), false);
    let (database, methods) = (connection.database(), connection.methods());
    let (connection, interrupted) = connection.into_parts();
    let query = match request.start(begun, database) {
        Ok(query) => query,
        Err(cut) => return Err(refuse(cut).await),
    };
    let mut execution = Execution::new(query, interrupted);
    let result = Driver::new((methods.execute)(connection, request)).await;
    execution.mark_over();
    result
}

async fn fetch_all<DB: Database>(
    connection: Handle<'_, DB>,
    request: Request<DB>,
    begun: Option<Begun>,
) -> sqlx::Result<Vec<DB::Row>> {
    let mut results = Results::<DB>::new(connection, request, begun, Rows::KeptForAWhile);
    let mut rows = Vec::new();
    while let Some(step) = next(&mut results).await {
        if let Step::<DB>::Right(row) = step? {
            rows.push(row);
        }
    }
    Ok(rows)
}

async fn fetch_optional<DB: Database>(
    mut connection: Handle<'_, DB>,
    request: Request<DB>,
    begun: Option<Begun>,
) -> sqlx::Result<Option<DB::Row>> {
    connection.settle().await?;
    connection.note(request.text(), false);
    let (database, methods) = (connection.database(), connection.methods());
    let (connection, interrupted) = connection.into_parts();
    let query = match request.start(begun, database) {
        Ok(query) => query,
        Err(cut) => return Err(refuse(cut).await),
    };
    let mut execution = Execution::new(query, interrupted);
    let row = Driver::new((methods.fetch_optional)(connection, request)).await;
    execution.mark_over();
    if let (Some(query), Ok(Some(_))) = (&mut *execution, &row) {
        query.add_rows(1);
    }
    row
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
