//! Measures work in tests, and demands what it may use.

mod advice;
mod assertions;
mod github;
mod measure;
mod message;
mod observer;
mod ratchet;
mod record;
mod scaling;
#[cfg(feature = "http")]
mod server;
mod site;
mod statement;

pub use measure::measure;
pub use ratchet::{Comparison, Ratchet};
pub use record::{CallSite, ExternalCall, Record, Statement};
pub use scaling::{Scaling, scaling};
#[cfg(feature = "http")]
pub use server::{Recorder, RecorderBody, RecorderFuture, RecorderLayer, RecorderService};
pub use site::Place;
