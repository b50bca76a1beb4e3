//! Recording, for tests: a list of everything that a unit of work does, in addition to its counts.
//!
//! Without the feature `testing` all functions are empty. With it, each statement checks one flag
//! as long as nothing in the process is being recorded.

#[cfg(not(feature = "testing"))]
mod absent;
#[cfg(feature = "testing")]
mod present;
#[cfg(feature = "testing")]
mod spawns;
#[cfg(feature = "testing")]
mod waits;

#[cfg(not(feature = "testing"))]
pub(crate) use absent::*;
#[cfg(feature = "testing")]
pub(crate) use present::*;
#[cfg(feature = "testing")]
pub(crate) use spawns::{Existing, Spawned, Whereabouts, are_tasks_ordered, for_library};
#[cfg(feature = "testing")]
pub(crate) use waits::Woken;
#[cfg(all(feature = "testing", feature = "sqlx"))]
pub(crate) use waits::touch;

/// What kind of thing is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A statement in the SQL of the database that sqlx names so.
    #[cfg(feature = "sqlx")]
    Sql(&'static str),
    /// A statement whose text holds no values: a shape.
    Shape,
    #[cfg(any(feature = "diesel", feature = "sqlx"))]
    Transaction,
    External,
    /// A round trip to a cache, by the kind of its command.
    #[cfg(feature = "redis")]
    CacheCall,
    /// A statement that was counted after the fact, in SQL as it seems.
    Observed,
    /// A statement in SQL that nothing counted.
    #[cfg(feature = "testing")]
    Unmetered,
}

#[cfg(feature = "testing")]
impl Kind {
    pub(crate) fn is_statement(self) -> bool {
        match self {
            #[cfg(feature = "sqlx")]
            Self::Sql(_) => true,
            Self::Shape | Self::Observed => true,
            _ => false,
        }
    }

    pub(crate) fn is_transaction(self) -> bool {
        #[cfg(any(feature = "diesel", feature = "sqlx"))]
        return self == Self::Transaction;
        #[cfg(not(any(feature = "diesel", feature = "sqlx")))]
        false
    }

    pub(crate) fn is_cache_call(self) -> bool {
        #[cfg(feature = "redis")]
        return self == Self::CacheCall;
        #[cfg(not(feature = "redis"))]
        false
    }

    /// In the SQL of which database it is; "" where that is not known, `None` where it is not SQL.
    pub(crate) fn database(self) -> Option<&'static str> {
        match self {
            #[cfg(feature = "sqlx")]
            Self::Sql(database) => Some(database),
            Self::Unmetered | Self::Observed => Some(""),
            _ => None,
        }
    }
}
