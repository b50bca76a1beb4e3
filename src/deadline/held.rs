//! What runs a piece of work: the future of a handler, the body of a response.

use std::pin::Pin;
#[cfg(feature = "mongodb")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use super::detached::{Detached, PollOn};
use crate::report::Outcome;
use crate::scope::Work;

pin_project! {
    /// What runs a piece of work, until it is done or ended early.
    ///
    /// A MongoDB command under way must not be dropped half way: what waits for it is polled on in a task
    /// of its own, and for that has to lie in a box from the start. Programs without a client of ours do
    /// not pay for it.
    #[cfg_attr(not(feature = "mongodb"), allow(dead_code, reason = "nothing is ever boxed"))]
    #[project = HeldProjection]
    pub(crate) enum Held<T> {
        Inline { #[pin] value: T },
        // The box outlives what is in it: it is nobody's memory but the server's.
        Boxed {
            value: Option<Pin<Box<Option<T>>>>,
            poll: PollOn<T>,
            spawn: fn(&Handle, Detached<T>),
        },
        Done,
    }
}

impl<T: Detachable> Held<T> {
    /// `poll` is how to poll it on when nobody wants what comes of it.
    pub(crate) fn new(value: T, poll: PollOn<T>) -> Self {
        #[cfg(feature = "mongodb")]
        if COMMANDS_MAY_BE_UNDER_WAY.load(Relaxed) {
            let spawn = |runtime: &Handle, detached| drop(runtime.spawn(detached));
            return Self::Boxed { value: Some(Box::pin(Some(value))), poll, spawn };
        }
        let _ = poll;
        Self::Inline { value }
    }
}

impl<T> Held<T> {
    pub(crate) fn as_ref(&self) -> Option<&T> {
        match self {
            Self::Inline { value } => Some(value),
            Self::Boxed { value, .. } => value.as_deref().and_then(Option::as_ref),
            Self::Done => None,
        }
    }

    pub(crate) fn as_pin_mut(self: Pin<&mut Self>) -> Option<Pin<&mut T>> {
        match self.project() {
            HeldProjection::Inline { value } => Some(value),
            HeldProjection::Boxed { value, .. } => value.as_mut()?.as_mut().as_pin_mut(),
            HeldProjection::Done => None,
        }
    }

    /// Drops what is held.
    pub(crate) fn clear(mut self: Pin<&mut Self>) {
        match self.as_mut().project() {
            HeldProjection::Boxed { value: Some(value), .. } => value.as_mut().set(None),
            _ => self.set(Self::Done),
        }
    }

    /// Drops what is held now that it is done, unless it lies in a box: then commands may be under way.
    #[cfg(feature = "http")]
    pub(crate) fn clear_inline(mut self: Pin<&mut Self>) {
        if matches!(*self, Self::Inline { .. }) {
            self.set(Self::Done);
        }
    }

    /// Whether there is nothing left to drop.
    #[cfg(feature = "http")]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Ends the work early, and drops what is held inside its scope: now, or once the MongoDB commands
    /// that it waits for are over.
    pub(crate) fn end_early(mut self: Pin<&mut Self>, mut work: Work, outcome: Outcome) {
        if let HeldProjection::Boxed { value, poll, spawn } = self.as_mut().project()
            && work.has_commands_under_way()
            && let Ok(runtime) = Handle::try_current()
            && let Some(value) = value.take()
        {
            return spawn(&runtime, Detached::new(value, *poll, work, outcome));
        }
        work.abandon(|| self.clear());
        work.finish(outcome);
    }
}

/// What can be moved to a task of its own, should it be ended while MongoDB commands are under way: all that is
/// `Send + 'static`, as what axum, tonic and hyper's servers run has to be anyway.
///
/// Asked of the futures and bodies under a [`BudgetLayer`](crate::BudgetLayer), whether or not the feature
/// `mongodb` is on: a dependency that switches it on changes no bound.
pub trait Detachable: Send + 'static {}

impl<T: Send + 'static> Detachable for T {}

#[cfg(feature = "mongodb")]
static COMMANDS_MAY_BE_UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Notes that this process has a MongoDB client of ours.
///
/// What was begun before lies in no box, and is dropped at once when it ends early. Where that may be so, because
/// the first client is made in the middle of work, an event says it.
#[cfg(feature = "mongodb")]
pub(crate) fn expect_commands() {
    if !COMMANDS_MAY_BE_UNDER_WAY.swap(true, Relaxed) && crate::scope::current().is_some() {
        tracing::event!(
            target: crate::report::fields::HEALTH,
            tracing::Level::WARN,
            "the first MongoDB client of this process was made inside a unit of work: requests that had begun \
             before drop their commands midway when they are cut; make the client before the first request",
        );
    }
}
