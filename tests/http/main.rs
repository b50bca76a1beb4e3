//! Units of work as their users see them: where they begin and end, what is charged to them, and
//! what their limits do.
//!
//! Polled by hand or on a paused clock; nothing here waits for real time.

#![expect(clippy::arithmetic_side_effects, reason = "in a test an overflow may panic")]

mod body_end;
mod clients;
mod errors;
mod external;
mod forwarding;
mod grpc;
mod limitations;
mod middleware;
mod naming;
mod panics;
mod readiness;
mod reporting;
mod scope;
mod server_timing;
mod streams;
mod stress;
mod support;
mod total_time;
mod usage;
