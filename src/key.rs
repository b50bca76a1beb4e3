//! A text as a number: a statement, or the name of an external system.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::{FixedState, FoldHasher};

/// Stands for a text by 64 bits of a good hash, which are never 0, and for the database it is executed on.
///
/// Two of a million different statements in one unit of
/// work would share one with a probability below one in ten million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    text: u64,
    database: DatabaseId,
}

impl Key {
    /// A text on no database in particular.
    pub(crate) fn of(text: &str) -> Self {
        Self::on(DatabaseId::UNKNOWN, text)
    }

    pub(crate) fn on(database: DatabaseId, text: &str) -> Self {
        Self { text: FixedState::default().hash_one(text).max(1), database }
    }

    /// What [`raw`](Self::raw) has returned.
    pub(crate) fn from_raw(text: u64) -> Self {
        Self { text, database: DatabaseId::UNKNOWN }
    }

    /// The text alone.
    pub(crate) fn raw(self) -> u64 {
        self.text
    }

    pub(crate) fn database(self) -> DatabaseId {
        self.database
    }

    /// The text and its database in one number.
    pub(crate) fn of_both(self) -> Self {
        let both = FixedState::default().hash_one((self.text, self.database.0));
        Self { text: both.max(1), database: DatabaseId::UNKNOWN }
    }
}

/// Tells the databases of a process apart: the same text on two shards is no repetition.
///
/// A hash of what a pool connects to. Two databases of a thousand would share one with a probability
/// below one in eight thousand; their statements would count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DatabaseId(u32);

impl DatabaseId {
    /// Any database of which nothing is known.
    pub(crate) const UNKNOWN: Self = Self(1);

    /// The database that is described so.
    #[cfg(any(feature = "mongodb", feature = "sqlx"))]
    pub(crate) fn of(description: &dyn fmt::Debug) -> Self {
        let mut hash = TextHash::new();
        // Writing to a hasher cannot fail.
        let _ = write!(hash, "{description:?}");
        // The upper half is as good as the lower.
        let half = u32::try_from(hash.finish() >> 32).unwrap_or(u32::MAX);
        Self(half.max(2))
    }

    #[cfg(test)]
    pub(crate) fn numbered(n: u32) -> Self {
        Self(n)
    }

    /// Never 0.
    pub(crate) fn raw(self) -> u32 {
        self.0
    }
}

/// Hashes what is formatted, without a string of it.
pub(crate) struct TextHash<'a>(FoldHasher<'a>);

impl TextHash<'_> {
    pub(crate) fn new() -> Self {
        Self(FixedState::default().build_hasher())
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.finish()
    }
}

impl Write for TextHash<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
