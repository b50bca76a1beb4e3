//! The outer works that a unit of work runs inside.

use std::iter;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use super::Meter;
use super::flags::Flags;
use crate::memory;

/// The outer works of a unit of work, from the inside out.
///
/// Finished work must not be kept alive by work that was begun inside of it: otherwise jobs that
/// begin their successors would form a chain that grows without end. So each work has weak
/// references to all of its outer works, not only to the next.
#[derive(Debug)]
pub(super) struct Ancestors {
    all: Box<[Weak<Meter>]>,
    /// Whether the outermost of them was begun by other work.
    #[cfg(feature = "testing")]
    is_outermost_begun: bool,
}

impl Ancestors {
    fn with(parent: &Arc<Meter>) -> Self {
        let further = parent.ancestors.get().into_iter().flat_map(|ancestors| &ancestors.all);
        let alive = further.filter(|further| further.strong_count() > 0).cloned();
        Self {
            all: iter::once(Arc::downgrade(parent)).chain(alive).collect(),
            #[cfg(feature = "testing")]
            is_outermost_begun: parent.is_outermost_begun(),
        }
    }
}

/// One account in a chain.
#[derive(Debug)]
pub(crate) enum Link<'a> {
    Own(&'a Meter),
    /// Kept alive while it is used.
    Outer(Arc<Meter>),
}

impl Deref for Link<'_> {
    type Target = Meter;

    fn deref(&self) -> &Meter {
        match self {
            Self::Own(meter) => meter,
            Self::Outer(meter) => meter,
        }
    }
}

impl Meter {
    /// Determines which outer work this one runs inside, unless that was done before.
    ///
    /// Only called by the task that runs the work. A handle for another task is only made once it
    /// is determined, so no other task sees it change.
    pub(crate) fn link(&self, parent: Option<Arc<Self>>) {
        if let Some(parent) = parent
            && !self.flags.any(Flags::SETTLED)
        {
            parent.share();
            self.ancestors.get_or_init(|| memory::aside(|| Ancestors::with(&parent)));
            if parent.flags.any(Flags::TIMES_POLLS) {
                self.flags.set(Flags::TIMES_POLLS);
            }
            self.flags.set(Flags::SETTLED);
        }
    }

    /// Whether this work runs inside no other, as most work does.
    #[inline]
    pub(crate) fn is_outermost(&self) -> bool {
        self.ancestors.get().is_none()
    }

    /// Calls `act` with this account and all outer ones, from the inside out.
    ///
    /// As a loop over [`chain`](Self::chain), but faster for work that runs inside no other: for
    /// statements and polls.
    #[inline]
    pub(crate) fn each(&self, mut act: impl FnMut(&Self)) {
        act(self);
        if let Some(ancestors) = self.ancestors.get() {
            ancestors.all.iter().filter_map(Weak::upgrade).for_each(|outer| act(&outer));
        }
    }

    /// This account and all outer ones, from the inside out.
    #[inline]
    pub(crate) fn chain(&self) -> impl Iterator<Item = Link<'_>> {
        self.places().flatten()
    }

    /// As [`chain`](Self::chain), with `None` for those that are gone, so that the position of each
    /// stays the same.
    #[inline]
    pub(crate) fn places(&self) -> impl Iterator<Item = Option<Link<'_>>> {
        let outer = self.ancestors.get().map_or(&[][..], |ancestors| &ancestors.all);
        let outer = outer.iter().map(|outer| outer.upgrade().map(Link::Outer));
        iter::once(Some(Link::Own(self))).chain(outer)
    }

    /// Whether the outermost work inside which this one runs, or this one, was begun by other work.
    #[cfg(feature = "testing")]
    pub(super) fn is_outermost_begun(&self) -> bool {
        let ancestors = self.ancestors.get();
        ancestors.map_or(self.origin().begun_by.is_some(), |all| all.is_outermost_begun)
    }
}
