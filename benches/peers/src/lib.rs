//! What request-budget costs, beside what one would use instead.

pub mod allocators;
pub mod layers;
pub mod measure;
pub mod mongo;
pub mod queries;
pub mod scale;
pub mod server;
