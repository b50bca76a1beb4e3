//! The part of an account that most units of work never need.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use super::Origin;
#[cfg(feature = "mongodb")]
use super::in_flight::InFlight;
use super::observed::Observed;
#[cfg(feature = "http")]
use super::outlived::Outlived;
#[cfg(feature = "witness")]
use super::own_span::OwnSpans;
#[cfg(feature = "diesel")]
use super::pending::Pending;
use super::table::Table;
use super::waiter::Waiter;
use crate::error::Cut;

/// Allocated when the first field is needed, so that the accounts of most works are small.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// The crossed hard limit that ends the work.
    pub(super) cut: OnceLock<Cut>,
    /// The task of the work itself, to be woken when another task crosses a hard limit.
    pub(super) waiter: Waiter,
    pub(super) externals: Table,
    /// Kinds of commands to caches.
    #[cfg(feature = "redis")]
    pub(super) caches: Table,
    /// How often something was refused.
    pub(super) refusals: AtomicU32,
    /// MongoDB commands in flight, charged when they end.
    #[cfg(feature = "mongodb")]
    pub(super) commands: InFlight,
    pub(super) unmetered: AtomicU64,
    /// Statements that were counted after their execution.
    pub(super) observed: Observed,
    /// Those of them that are in flight, if their begin and their end are reported separately.
    #[cfg(feature = "diesel")]
    pub(super) pending: Pending,
    #[cfg(feature = "witness")]
    pub(super) spans: OwnSpans,
    /// How long the wall time was, if it ended before the work did.
    pub(super) stopped: OnceLock<Duration>,
    /// How many parts of the work are being ended from outside.
    pub(super) parts_abandoned: AtomicU32,
    pub(super) origin: Origin,
    #[cfg(feature = "http")]
    pub(super) outlived: Outlived,
}

impl Rare {
    pub(super) fn of(origin: Origin) -> Self {
        Self { origin, ..Self::default() }
    }

    /// The parts that user code allocated; drops the others.
    pub(super) fn into_foreign_parts(self) -> impl Sized {
        #[cfg(feature = "mongodb")]
        return (self.waiter, self.origin, self.commands.into_waiter());
        #[cfg(not(feature = "mongodb"))]
        (self.waiter, self.origin)
    }
}
