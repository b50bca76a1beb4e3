//! One statement in flight, and what is to be done if it is dropped midway.

use std::mem;
use std::ops::{Deref, DerefMut};

use crate::db::Query;

/// A statement that the driver works on.
///
/// Dropped in the middle because the unit of work ends, it notes on the connection that this is not
/// fit for others. Dropped in the middle by the work itself (the first rows of a stream were enough) it
/// does not: the driver reads the rest when the connection is used next, as without this crate.
pub(super) struct Execution<'e, W: Watched> {
    watched: W,
    was_interrupted: &'e mut bool,
    is_over: bool,
}

/// What knows whether the unit of work is being ended from outside.
pub(super) trait Watched {
    fn is_abandoned(&self) -> bool;
}

/// None where the driver sends nothing.
impl Watched for Option<Query> {
    fn is_abandoned(&self) -> bool {
        self.as_ref().is_some_and(Query::is_abandoned)
    }
}

impl Watched for crate::db::TransactionWait {
    fn is_abandoned(&self) -> bool {
        self.is_abandoned()
    }
}

impl<'e, W: Watched> Execution<'e, W> {
    pub(super) fn new(watched: W, was_interrupted: &'e mut bool) -> Self {
        Self { watched, was_interrupted, is_over: false }
    }

    /// Notes that the driver has completed it.
    pub(super) fn mark_over(&mut self) {
        self.is_over = true;
    }
}

impl<W: Watched> Drop for Execution<'_, W> {
    fn drop(&mut self) {
        if !self.is_over && self.watched.is_abandoned() {
            *self.was_interrupted = true;
        }
    }
}

impl<W: Watched> Deref for Execution<'_, W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.watched
    }
}

impl<W: Watched> DerefMut for Execution<'_, W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.watched
    }
}

/// Requests of the driver to the server that execute nothing.
///
/// Dropped midway, by whomever, it is noted on the connection: MySQL's driver does not know that the answer is
/// still to come, and would take it for that to the next statement.
pub(super) async fn uncounted<F: Future>(asked: F, was_interrupted: &mut bool) -> F::Output {
    let before = mem::replace(was_interrupted, true);
    let answer = asked.await;
    *was_interrupted = before;
    answer
}
