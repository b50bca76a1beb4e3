//! Time limits: of the whole work, and of each call to an external system.
//!
//! Work is always polled before the clock is asked, so what is finished is never thrown away
//! because the clock also rang.

#[cfg(feature = "http")]
mod detached;
mod external;
#[cfg(feature = "http")]
mod held;
mod refusal;
mod table;
mod timer;
#[cfg(feature = "http")]
mod waiting;

pub use external::External;
#[cfg(any(feature = "aws", feature = "reqwest-middleware"))]
pub(crate) use external::LongCall;
#[cfg(feature = "http")]
pub use held::Detachable;
#[cfg(feature = "http")]
pub(crate) use held::Held;
#[cfg(all(feature = "http", feature = "mongodb"))]
pub(crate) use held::expect_commands;
pub(crate) use refusal::Refusal;
pub(crate) use timer::Timer;
#[cfg(feature = "http")]
pub(crate) use waiting::Readiness;

#[cfg(test)]
mod tests;
