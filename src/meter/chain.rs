//! The works inside which a unit of work runs.

use std::iter;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use super::Meter;
use super::flags::Flags;
use crate::memory;

/// The works inside which one runs, from the inside out.
///
/// Work that is over must be kept alive neither by what was begun in it nor by what was begun in that: a job that
/// begins the next one would otherwise make a chain that has no end. So each work knows all of them by itself, and
/// by handles that keep nothing alive.
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
    /// Kept alive while it is looked at.
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
    /// Settles inside which work this one runs, unless that is settled.
    ///
    /// Called by the one that runs the work. Whoever else knows of the account has settled it before, so
    /// that nobody sees it half settled.
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

    /// Whether this account is the whole chain, as that of most work is.
    #[inline]
    pub(crate) fn runs_in_none(&self) -> bool {
        self.ancestors.get().is_none()
    }

    /// Does something to this account and to all that it is charged to as well, from the inside out.
    ///
    /// The loop over [`chain`](Self::chain) for what each statement and each poll does: most work runs inside no
    /// other, and has one look here for all of it.
    #[inline]
    pub(crate) fn each(&self, mut act: impl FnMut(&Self)) {
        act(self);
        if let Some(ancestors) = self.ancestors.get() {
            ancestors.all.iter().filter_map(Weak::upgrade).for_each(|outer| act(&outer));
        }
    }

    /// This account and all that it is charged to as well, from the inside out.
    #[inline]
    pub(crate) fn chain(&self) -> impl Iterator<Item = Link<'_>> {
        self.places().flatten()
    }

    /// The same with the places of those that are gone, which keep a place the same for good.
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
