//! Measures work in tests, and demands what it may use.

mod advice;
mod assertions;
mod github;
mod measure;
mod message;
mod observer;
mod record;
mod site;
mod statement;

pub use measure::measure;
pub use record::{CallSite, ExternalCall, Record, Statement};
pub use site::Place;
