//! One statement in flight, and what is to be done if it is dropped midway.

use std::mem;
use std::ops::{Deref, DerefMut};

use crate::db::Query;

/// How statements and requests of a connection were dropped midway.
#[derive(Debug, Default)]
pub(super) struct Interrupted {
    /// By the end of the unit of work: it has to be cleaned before others get the connection.
    pub(super) by_end: bool,
    /// By whomever, while their answer was awaited. Most drivers read what is left of it when the
    /// connection is used next; MySQL's can mistake it for the answer to what is sent next.
    pub(super) in_answer: bool,
}

/// A statement that the driver works on.
///
/// Dropped midway it notes that on the connection, unless that was between two rows of a stream, of
/// which the first were enough for the work.
pub(super) struct Execution<'e, W: Watched> {
    watched: W,
    interrupted: &'e mut Interrupted,
    is_over: bool,
    is_between_rows: bool,
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
    pub(super) fn new(watched: W, interrupted: &'e mut Interrupted) -> Self {
        Self { watched, interrupted, is_over: false, is_between_rows: false }
    }

    /// Notes whether the driver has handed out a row, and has not been asked for the next.
    pub(super) fn note_between_rows(&mut self, is_between_rows: bool) {
        self.is_between_rows = is_between_rows;
    }

    /// Notes that the driver has completed it.
    pub(super) fn mark_over(&mut self) {
        self.is_over = true;
    }
}

impl<W: Watched> Drop for Execution<'_, W> {
    fn drop(&mut self) {
        if !self.is_over {
            self.interrupted.by_end |= self.watched.is_abandoned();
            self.interrupted.in_answer |= !self.is_between_rows;
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
/// Dropped midway, by whomever, it is noted on the connection.
pub(super) async fn uncounted<F: Future>(asked: F, interrupted: &mut Interrupted) -> F::Output {
    let before = mem::replace(interrupted, Interrupted { by_end: true, in_answer: true });
    let answer = asked.await;
    *interrupted = before;
    answer
}
