//! The compiler's message for code that requires [`sqlx::Acquire`], which is not implemented.
//!
//! By itself the compiler would list sqlx's own types. These impls have a bound that no type
//! satisfies, whose message names what to do instead.

use futures_core::future::BoxFuture;
use sqlx::{Acquire, Database};

use super::connection::Connection;
use super::pool::Pool;

/// Implemented by nothing.
#[diagnostic::on_unimplemented(
    message = "`sqlx::Acquire` is not implemented for `{Self}`: it could only hand out connections \
               that are not metered",
    label = "pass `.unmetered()` of this pool or connection instead",
    note = "what runs on `.unmetered()` is not counted, and no limit holds for it: it is meant for \
            migrations and the like",
    note = "code of your own can take `impl sqlx::Executor`, or `request_budget::sqlx::Pool`, and \
            stay metered"
)]
trait HandsOutUnmetered {
    fn never<T>(self) -> T;
}

#[doc(hidden)]
impl<'c, DB: Database> Acquire<'c> for &Pool<DB>
where
    Self: HandsOutUnmetered,
{
    type Database = DB;
    type Connection = sqlx::pool::PoolConnection<DB>;

    fn acquire(self) -> BoxFuture<'c, sqlx::Result<Self::Connection>> {
        self.never()
    }

    fn begin(self) -> BoxFuture<'c, sqlx::Result<sqlx::Transaction<'c, DB>>> {
        self.never()
    }
}

#[doc(hidden)]
impl<'c, DB: Database> Acquire<'c> for &'c mut Connection<DB>
where
    Self: HandsOutUnmetered,
{
    type Database = DB;
    type Connection = &'c mut DB::Connection;

    fn acquire(self) -> BoxFuture<'c, sqlx::Result<Self::Connection>> {
        self.never()
    }

    fn begin(self) -> BoxFuture<'c, sqlx::Result<sqlx::Transaction<'c, DB>>> {
        self.never()
    }
}
