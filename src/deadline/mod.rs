//! Time limits: of the whole work, and of each call to an external system.
//!
//! Work is always polled before the clock is asked, so what is finished is never thrown away because
//! the clock also rang.

mod external;
mod timer;

pub use external::External;
pub(crate) use timer::Timer;
