//! Statements that no metered connection has sent, counted after the fact; and statements that
//! write.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test may panic; not all of this is in functions that clippy takes for tests"
)]

mod callbacks;
mod events;
mod measured;
mod sea_orm;
mod unusual;
mod writes;
