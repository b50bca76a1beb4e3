//! The inner future or body of a request, which can be moved to a task of its own if it is ended
//! early.

use std::pin::Pin;
#[cfg(feature = "mongodb")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use super::detached::{Detached, PollOn};
use crate::report::Outcome;
use crate::scope::Work;

pin_project! {
    /// The inner future or body of a request, until it is done or ended early.
    ///
    /// A MongoDB command in flight must not be dropped midway, so the future that waits for it is
    /// polled on in a task of its own. As it must not be moved once it was polled, it is boxed from
    /// the start, but only in processes that have a MongoDB client of this crate.
    #[cfg_attr(not(feature = "mongodb"), allow(dead_code, reason = "nothing is ever boxed"))]
    #[project = HeldProjection]
    pub(crate) enum Held<T> {
        Inline { #[pin] value: T },
        // The box outlives the value, and is not charged to the work.
        Boxed {
            value: Option<Pin<Box<Option<T>>>>,
            poll: PollOn<T>,
            spawn: fn(&Handle, Detached<T>),
        },
        Done,
    }
}

impl<T: Detachable> Held<T> {
    /// `poll` drives the value to completion if it is ended early.
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

    /// Drops the value.
    pub(crate) fn clear(mut self: Pin<&mut Self>) {
        match self.as_mut().project() {
            HeldProjection::Boxed { value: Some(value), .. } => value.as_mut().set(None),
            _ => self.set(Self::Done),
        }
    }

    /// Drops the value, which is done, unless it is boxed: then commands may be in flight.
    #[cfg(feature = "http")]
    pub(crate) fn clear_inline(mut self: Pin<&mut Self>) {
        if matches!(*self, Self::Inline { .. }) {
            self.set(Self::Done);
        }
    }

    /// Whether the value was dropped.
    #[cfg(feature = "http")]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Ends the work early and drops the value inside its scope: now, or once the MongoDB commands
    /// that it waits for have ended.
    pub(crate) fn end_early(mut self: Pin<&mut Self>, mut work: Work, outcome: Outcome) {
        if let HeldProjection::Boxed { value, poll, spawn } = self.as_mut().project()
            && work.has_commands_in_flight()
            && let Ok(runtime) = Handle::try_current()
            && let Some(value) = value.take()
        {
            return spawn(&runtime, Detached::new(value, *poll, work, outcome));
        }
        work.abandon(|| self.clear());
        work.finish(outcome);
    }
}

/// Futures and bodies that can be moved to a task of their own if they are ended while MongoDB
/// commands are in flight. Implemented for all types that are `Send + 'static`, as those that axum,
/// tonic and hyper's servers run are anyway.
///
/// Required of the futures and bodies under a [`BudgetLayer`](crate::BudgetLayer) whether or not
/// the feature `mongodb` is enabled, so that a dependency that enables it changes no bound.
pub trait Detachable: Send + 'static {}

impl<T: Send + 'static> Detachable for T {}

#[cfg(feature = "mongodb")]
static COMMANDS_MAY_BE_UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Notes that this process has a MongoDB client of this crate.
///
/// Requests that were begun before are not boxed, and are dropped at once when they end early. If
/// the first client is made inside a unit of work, so that there may be such requests, an event is
/// emitted.
#[cfg(feature = "mongodb")]
pub(crate) fn expect_commands() {
    if !COMMANDS_MAY_BE_UNDER_WAY.swap(true, Relaxed) && crate::scope::current().is_some() {
        tracing::event!(
            target: crate::report::fields::HEALTH,
            tracing::Level::WARN,
            "the first MongoDB client of this process was made inside a unit of work: requests \
             that had begun before drop their commands midway when they are cut; make the client \
             before the first request",
        );
    }
}
