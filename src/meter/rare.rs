//! What most units of work never have.

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

/// Made when the first of it is needed: the account of most work is so much smaller.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// The crossing of a hard limit that ends the work.
    pub(super) cut: OnceLock<Cut>,
    /// The work itself, which waits for a cut that comes up elsewhere.
    pub(super) waiter: Waiter,
    pub(super) externals: Table,
    /// Kinds of commands to caches.
    #[cfg(feature = "redis")]
    pub(super) caches: Table,
    /// How often something was refused.
    pub(super) refusals: AtomicU32,
    /// Commands under way; charged with their time when they end.
    #[cfg(feature = "mongodb")]
    pub(super) commands: InFlight,
    pub(super) unmetered: AtomicU64,
    /// Statements that were counted after the fact.
    pub(super) observed: Observed,
    /// Those of them that are in flight, where their end is reported apart.
    #[cfg(feature = "diesel")]
    pub(super) pending: Pending,
    #[cfg(feature = "witness")]
    pub(super) spans: OwnSpans,
    /// After how long the wall time ended, where some of the work has gone on after that.
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

    /// Drops what was made here; leaves what was made by others.
    pub(super) fn without_ours(self) -> impl Sized {
        #[cfg(feature = "mongodb")]
        return (self.waiter, self.origin, self.commands.into_waiter());
        #[cfg(not(feature = "mongodb"))]
        (self.waiter, self.origin)
    }
}
