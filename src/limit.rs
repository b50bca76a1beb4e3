//! Soft and hard limits.

use std::fmt;
use std::time::Duration;

/// How much of a resource may be used. A soft limit reports a violation; a hard one also cuts the
/// work.
///
/// A bare value is accepted wherever a limit is: it takes the kind that the resource has by
/// default, soft for all but `total_time`, `external_timeout` and `body_idle`. Use is over a limit
/// when it is *more* than the limit, so a limit of zero allows nothing.
///
/// # Examples
///
/// ```
/// use request_budget::{Budget, Limit};
///
/// let budget = Budget::new()
///     .rows(1_000)
///     .queries(Limit::soft(20).and_hard(200))
///     .memory(Limit::hard(64 << 20));
/// assert_eq!(budget.limit(request_budget::Resource::Memory).map(|limit| limit.is_hard()), Some(true));
/// assert_eq!(Limit::soft(20).and_hard(200).to_string(), "20 (200 hard)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit<T>(Kind<T>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind<T> {
    /// Soft or hard, by the default of the resource.
    Bare(T),
    Soft(T),
    Hard(T),
    Both {
        soft: T,
        hard: T,
    },
}

impl<T: Copy> Limit<T> {
    /// A limit that reports when it is crossed.
    pub const fn soft(value: T) -> Self {
        Self(Kind::Soft(value))
    }

    /// A limit that reports and cuts the work when it is crossed.
    pub const fn hard(value: T) -> Self {
        Self(Kind::Hard(value))
    }

    /// Adds a hard limit, or replaces the present one.
    #[must_use]
    pub const fn and_hard(self, hard: T) -> Self {
        match self.0 {
            Kind::Bare(soft) | Kind::Soft(soft) | Kind::Both { soft, .. } => {
                Self(Kind::Both { soft, hard })
            }
            Kind::Hard(_) => Self(Kind::Hard(hard)),
        }
    }

    /// Whether crossing it can cut the work.
    ///
    /// `false` for a bare value that no budget has taken yet.
    pub const fn is_hard(&self) -> bool {
        matches!(self.0, Kind::Hard(_) | Kind::Both { .. })
    }

    /// The soft limit, if there is one.
    pub const fn soft_value(&self) -> Option<T> {
        match self.0 {
            Kind::Bare(soft) | Kind::Soft(soft) | Kind::Both { soft, .. } => Some(soft),
            Kind::Hard(_) => None,
        }
    }

    /// The hard limit, if there is one.
    pub const fn hard_value(&self) -> Option<T> {
        match self.0 {
            Kind::Hard(hard) | Kind::Both { hard, .. } => Some(hard),
            Kind::Bare(_) | Kind::Soft(_) => None,
        }
    }

    /// Makes a bare value soft or hard, by the default of the resource.
    pub(crate) fn resolve(self, hard_by_default: bool) -> Self {
        match self.0 {
            Kind::Bare(value) if hard_by_default => Self(Kind::Hard(value)),
            Kind::Bare(value) => Self(Kind::Soft(value)),
            _ => self,
        }
    }

    /// The limit with these values, if there is any.
    pub(crate) fn from_values(soft: Option<T>, hard: Option<T>) -> Option<Self> {
        match (soft, hard) {
            (Some(soft), Some(hard)) => Some(Self(Kind::Both { soft, hard })),
            (Some(soft), None) => Some(Self(Kind::Soft(soft))),
            (None, Some(hard)) => Some(Self(Kind::Hard(hard))),
            (None, None) => None,
        }
    }
}

/// Formats a soft limit as its value, and others as "200 (hard)" or "20 (200 hard)".
impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Bare(soft) | Kind::Soft(soft) => soft.fmt(f),
            Kind::Hard(hard) => write!(f, "{hard} (hard)"),
            Kind::Both { soft, hard } => write!(f, "{soft} ({hard} hard)"),
        }
    }
}

// One integer type only: with a second one `queries(20)` would no longer infer.
impl From<u64> for Limit<u64> {
    fn from(value: u64) -> Self {
        Self(Kind::Bare(value))
    }
}

impl From<Duration> for Limit<Duration> {
    fn from(value: Duration) -> Self {
        Self(Kind::Bare(value))
    }
}
