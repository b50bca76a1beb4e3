//! The names of the pools for whose connections work waits.

use std::sync::{PoisonError, RwLock};

use crate::memory;

/// Stands for the name of a pool: what waits for a connection notes a number, not a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolId(u32);

/// Names are never removed, so that the place of one stands for it.
static NAMES: RwLock<Vec<Box<str>>> = RwLock::new(Vec::new());

impl PoolId {
    /// A pool of which no name is known.
    pub(crate) const UNKNOWN: Self = Self(0);

    /// So many names are kept: a program may open any number of pools, one for each tenant.
    const MOST: usize = 1024;
    const LONGEST: usize = 100;

    /// The pools of this name, which is cut to 100 characters.
    #[cfg_attr(
        not(any(feature = "mongodb", feature = "sqlx", test)),
        expect(dead_code, reason = "there are no pools")
    )]
    pub(crate) fn of(name: &str) -> Self {
        let end = name.char_indices().nth(Self::LONGEST).map_or(name.len(), |(end, _)| end);
        let name = &name[..end];
        let find = |names: &[Box<str>]| names.iter().position(|known| **known == *name);
        let known = find(&NAMES.read().unwrap_or_else(PoisonError::into_inner));
        let position = known.or_else(|| {
            let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
            find(&names).or_else(|| {
                let position = names.len();
                (position < Self::MOST).then(|| {
                    memory::aside(|| names.push(name.into()));
                    position
                })
            })
        });
        let number = position.and_then(|position| u32::try_from(position).ok());
        number.map_or(Self::UNKNOWN, |number| Self(number.saturating_add(1)))
    }

    pub(super) const fn from_raw(number: u32) -> Self {
        Self(number)
    }

    #[cfg(any(feature = "diesel", feature = "mongodb", feature = "sqlx"))]
    pub(super) const fn raw(self) -> u32 {
        self.0
    }

    pub(super) fn name(self) -> Option<String> {
        let position = usize::try_from(self.0.checked_sub(1)?).ok()?;
        let names = NAMES.read().unwrap_or_else(PoisonError::into_inner);
        names.get(position).map(|name| String::from(&**name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_one_name_are_the_same_and_names_are_bounded() {
        let first = PoolId::of("postgres://a/shop");
        assert_eq!(PoolId::of("postgres://a/shop"), first);
        assert_eq!(first.name().as_deref(), Some("postgres://a/shop"));
        assert_eq!(PoolId::UNKNOWN.name(), None);
        let long = PoolId::of(&"ü".repeat(1_000));
        assert_eq!(long.name(), Some("ü".repeat(100)));
        for tenant in 0..5_000 {
            PoolId::of(&format!("postgres://a/tenant{tenant}"));
        }
        assert_eq!(PoolId::of("postgres://a/one_more"), PoolId::UNKNOWN);
        assert_eq!(PoolId::of("postgres://a/shop"), first);
    }
}
