//! Hashes of texts: of statements, and of the names of external systems.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::{FixedState, FoldHasher};

/// Identifies a text by 64 bits of its hash, which are never 0, and the database that executes it.
///
/// The probability that two of a million different statements in one unit of work share a key is
/// below one in ten million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    text: u64,
    database: DatabaseId,
}

impl Key {
    /// The key of a text on no particular database.
    pub(crate) fn of(text: &str) -> Self {
        Self::on(DatabaseId::UNKNOWN, text)
    }

    pub(crate) fn on(database: DatabaseId, text: &str) -> Self {
        Self { text: FixedState::default().hash_one(text).max(1), database }
    }

    /// The key of a text without its white space, which is equal for texts that differ in nothing
    /// else.
    pub(crate) fn of_words(text: &str) -> Self {
        Self::of(&text.split_whitespace().collect::<String>())
    }

    /// The key that [`raw`](Self::raw) has returned.
    pub(crate) fn from_raw(text: u64) -> Self {
        Self { text, database: DatabaseId::UNKNOWN }
    }

    /// The hash of the text alone.
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

/// Identifies a database, because the same text on two shards is no repetition.
///
/// It is a hash of what a pool connects to. The probability that two of a thousand databases share
/// one is below one in eight thousand; their statements would be counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DatabaseId(u32);

impl DatabaseId {
    /// Stands for every database of which nothing is known.
    pub(crate) const UNKNOWN: Self = Self(1);

    /// The database with this description.
    #[cfg(any(feature = "mongodb", feature = "sqlx"))]
    pub(crate) fn of(description: &dyn fmt::Debug) -> Self {
        let mut hash = TextHash::new();
        // Writing into a hasher cannot fail.
        let _ = write!(hash, "{description:?}");
        // Both halves of the hash are equally good.
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
