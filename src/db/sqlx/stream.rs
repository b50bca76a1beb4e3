//! The results of a statement, counted as they arrive.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::{Database, Either};

use super::execution::Execution;
use super::refused;
use super::request::Request;
use super::session::Handle;
use crate::db::{Begun, Query, driver};
use crate::deadline::Refusal;
use crate::error::Cut;

pub(super) type Step<DB> = Either<<DB as Database>::QueryResult, <DB as Database>::Row>;

/// The results of one request; nothing is executed, and nothing counted, before the first poll.
pub(super) struct Results<'e, DB: Database> {
    state: State<'e, DB>,
    rows: Rows,
    /// Not yet counted.
    kept: u64,
}

/// What becomes of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// They go to the caller one by one, who can ask how many there were.
    HandedOut,
    /// They are kept until all are there, and counted then; or where the next has to be waited for,
    /// as soon as they cross a limit.
    KeptForAWhile,
    /// By the executor's `execute`.
    ThrownAway,
}

enum State<'e, DB: Database> {
    New {
        connection: Handle<'e, DB>,
        request: Request<DB>,
        begun: Option<Begun>,
    },
    /// What was begun on the connection before, and dropped midway, is rolled back first.
    Settling {
        settled: BoxFuture<'e, sqlx::Result<Handle<'e, DB>>>,
        request: Request<DB>,
        begun: Option<Begun>,
    },
    Running {
        results: Driven<'e, DB>,
        execution: Execution<'e, Option<Query>>,
        batch: Batch,
    },
    Refused(Refusal),
    Done,
}

/// The results as the driver brings them.
struct Driven<'e, DB: Database>(Option<BoxStream<'e, sqlx::Result<Step<DB>>>>);

/// Dropped midway the driver is at work for the last time: sqlx reports then what it has executed.
impl<DB: Database> Drop for Driven<'_, DB> {
    fn drop(&mut self) {
        if let Some(results) = self.0.take() {
            driver::run(|| drop(results));
        }
    }
}

/// Where in a batch of statements the results are.
struct Batch {
    is_possible: bool,
    /// The statement whose results come next has been counted.
    is_counted: bool,
}

impl<'e, DB: Database> Results<'e, DB> {
    pub(super) fn new(
        connection: Handle<'e, DB>,
        request: Request<DB>,
        begun: Option<Begun>,
        rows: Rows,
    ) -> Self {
        Self { state: State::New { connection, request, begun }, rows, kept: 0 }
    }

    /// Hands the request over to the driver, once the connection is fit for it.
    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<sqlx::Result<()>> {
        loop {
            match mem::replace(&mut self.state, State::Done) {
                State::New { mut connection, request, begun } if connection.is_settled() => {
                    let batch = Batch { is_possible: request.may_be_batch(), is_counted: true };
                    connection.note(request.text(), batch.is_possible);
                    let query = match request.start(begun, connection.database()) {
                        Ok(query) => query,
                        Err(cut) => {
                            self.state = State::Refused(Refusal::new(cut));
                            return Poll::Ready(Ok(()));
                        }
                    };
                    let methods = connection.methods();
                    let (connection, interrupted) = connection.into_parts();
                    let execution = Execution::new(query, interrupted);
                    let results = Driven(Some((methods.fetch_many)(connection, request)));
                    self.state = State::Running { results, execution, batch };
                }
                State::New { mut connection, request, begun } => {
                    let settled = async move { connection.settle().await.map(|()| connection) };
                    self.state = State::Settling { settled: Box::pin(settled), request, begun };
                }
                State::Settling { mut settled, request, begun } => {
                    let Poll::Ready(connection) = settled.as_mut().poll(cx) else {
                        self.state = State::Settling { settled, request, begun };
                        return Poll::Pending;
                    };
                    self.state = State::New { connection: connection?, request, begun };
                }
                started => {
                    self.state = started;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<DB: Database> Stream for Results<'_, DB> {
    type Item = sqlx::Result<Step<DB>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if matches!(self.state, State::New { .. } | State::Settling { .. })
            && let Err(error) = ready!(self.poll_start(cx))
        {
            return Poll::Ready(Some(Err(error)));
        }
        if let State::Refused(refusal) = &mut self.state {
            let cut = ready!(refusal.poll_cut(cx));
            self.state = State::Done;
            return Poll::Ready(Some(Err(refused(cut))));
        }
        let Self { state, rows, kept } = &mut *self;
        let State::Running { results, execution, batch } = state else {
            return Poll::Ready(None);
        };
        let Some(driven) = &mut results.0 else { return Poll::Ready(None) };
        let polled = driver::run(|| driven.as_mut().poll_next(cx));
        execution.note_between_rows(polled.is_ready());
        if let Some(query) = &mut **execution {
            match &polled {
                // The clock is read only for a wait: a row that is ready costs nothing.
                Poll::Pending => query.resume(),
                Poll::Ready(_) => query.pause(),
            }
            if let Poll::Ready(Some(step)) = &polled
                && let Err(cut) = batch.arrived(step, query)
            {
                self.state = State::Refused(Refusal::new(cut));
                return self.poll_next(cx);
            }
            match (&polled, *rows) {
                (Poll::Ready(Some(Ok(Either::Right(_)))), Rows::HandedOut) => query.add_rows(1),
                (Poll::Ready(Some(Ok(Either::Right(_)))), Rows::KeptForAWhile) => {
                    *kept = kept.saturating_add(1);
                }
                // Nobody gets them if the rest does not come, unless they are too many already.
                (Poll::Pending, _) if *kept > 0 && query.crosses_with_rows(*kept) => {
                    query.add_rows(mem::take(kept));
                }
                (Poll::Ready(None), _) if *kept > 0 => query.add_rows(mem::take(kept)),
                _ => {}
            }
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            execution.mark_over();
            results.0 = None;
            self.state = State::Done;
        }
        polled
    }
}

impl Batch {
    /// Counts the statement that this is a result of, unless it has been counted.
    ///
    /// # Errors
    ///
    /// Refuses the results if that crosses a hard limit.
    fn arrived<L, R>(
        &mut self,
        step: &sqlx::Result<Either<L, R>>,
        query: &mut Query,
    ) -> Result<(), Cut> {
        if !self.is_possible {
            return Ok(());
        }
        if !self.is_counted {
            query.count_next_of_batch()?;
        }
        // The summary is the last result of a statement.
        self.is_counted = !matches!(step, Ok(Either::Left(_)));
        Ok(())
    }
}

// Nothing is pinned in it: what runs is boxed.
impl<DB: Database> Unpin for Results<'_, DB> {}
