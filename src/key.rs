//! A text as a number: a statement, or the name of an external system.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

/// Stands for a text by 64 bits of a good hash, which are never 0.
///
/// Two of a million different statements in one unit of
/// work would share one with a probability below one in ten million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn of(text: &str) -> Self {
        Self(FixedState::default().hash_one(text).max(1))
    }

    pub(crate) fn raw(self) -> u64 {
        self.0
    }
}
