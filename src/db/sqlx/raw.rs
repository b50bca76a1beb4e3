//! Conversions of metered connections into references to sqlx's own.
//!
//! `&mut tx` and `&mut conn` become a `&mut PgConnection` where a function takes that, and its
//! `AsMut` is there for bounds such as that of `PgAdvisoryLock`. A generic parameter does not
//! coerce, so `&mut *tx` stays a metered executor wherever an `impl Executor` is taken.

use std::ops::{Deref, DerefMut};

use sqlx::Database;

use super::connection::{Connection, PoolConnection};
use super::transaction::Transaction;
use crate::report::fields::HEALTH;
use crate::report::seldom::Seldom;
use crate::scope;

impl<DB: Database> Deref for Connection<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.raw()
    }
}

/// What is executed on it is not counted, unless [`SqlxEvents`](crate::db::SqlxEvents) does; one
/// event in a while warns of that.
impl<DB: Database> DerefMut for Connection<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        warn_of_raw_use();
        self.unmetered()
    }
}

/// Of sqlx's connection; the method [`as_mut`](Connection::as_mut) returns the metered one.
impl<DB: Database> AsMut<DB::Connection> for Connection<DB> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        self
    }
}

impl<DB: Database> AsRef<DB::Connection> for Connection<DB> {
    fn as_ref(&self) -> &DB::Connection {
        self
    }
}

/// Of sqlx's connection; the method [`as_mut`](PoolConnection::as_mut) returns the metered one.
impl<DB: Database> AsMut<DB::Connection> for PoolConnection<DB> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        self
    }
}

impl<DB: Database> AsRef<DB::Connection> for PoolConnection<DB> {
    fn as_ref(&self) -> &DB::Connection {
        self
    }
}

/// Of sqlx's connection; the method [`as_mut`](Transaction::as_mut) returns the metered one.
impl<DB: Database> AsMut<DB::Connection> for Transaction<'_, DB> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        self
    }
}

impl<DB: Database> AsRef<DB::Connection> for Transaction<'_, DB> {
    fn as_ref(&self) -> &DB::Connection {
        self
    }
}

#[cold]
fn warn_of_raw_use() {
    static WARNED: Seldom = Seldom::new();
    #[cfg(feature = "witness")]
    if crate::db::events::counts() {
        return;
    }
    if scope::current().is_some() && WARNED.admit().is_some() {
        tracing::event!(
            target: HEALTH,
            tracing::Level::WARN,
            "a metered connection was passed as sqlx's own, so what is executed on it is not \
             counted: pass `&mut *tx` as an executor, take \
             `&mut request_budget::sqlx::Connection<DB>`, or count with `db::SqlxEvents`",
        );
    }
}
