//! What a budget cannot do, and what to do about each.
//!
//! # A response that nobody reads
//!
//! A server polls a body for its next frame when its buffer has room. While a client reads nothing,
//! nobody polls the body: [`total_time`](crate::Budget::total_time) cuts it only when the server
//! polls again, and [`body_idle`](crate::Budget::body_idle) only bounds how long the server waits
//! for the body. Meanwhile the body keeps whatever it holds, such as a pooled connection.
//!
//! *Remedy:* give the connections that the server accepts a write timeout: by a stream such as that
//! of the crate `tokio-io-timeout`, by the socket option `TCP_USER_TIMEOUT`, or in a proxy in
//! front. The server then drops the body, and the request ends as cancelled. Stream long responses
//! from a source that needs no connection meanwhile, or read them by pages.
//!
//! # A body that is cut, over HTTP/1.0
//!
//! There a body of unknown length ends with its connection, so the client takes a body that was cut
//! for a complete one. Over HTTP/1.1 and HTTP/2 it can distinguish the two.
//!
//! *Remedy:* a `content-length`; or let the proxy in front speak HTTP/1.1 (nginx:
//! `proxy_http_version 1.1`).
//!
//! # A response whose status was sent
//!
//! Once the headers are sent, a cut is an error of the body and no longer a 503.
//!
//! *Remedy:* create small bodies completely before they are returned.
//!
//! # Code that does not yield
//!
//! Work is cut between two polls. Code that computes or blocks for a long time is not interrupted:
//! it runs to its end and is reported then, and a response that is ready by then is sent.
//!
//! *Remedy:* [`poll_time`](crate::Budget::poll_time) finds such code. Call
//! [`task::checkpoint`](crate::task::checkpoint) in loops, or run the code by
//! [`task::spawn_blocking`](crate::task::spawn_blocking): the work is then cut in time, though the
//! thread continues to the next checkpoint.
//!
//! # Waits before there is a request
//!
//! In one `ServiceBuilder` a limit further in makes requests wait in `poll_ready`, before this
//! layer is called: no budget bounds that. *Remedy:* [two layers, or
//! `LoadShedLayer`](crate::http::layers#layers-that-wait-until-they-are-ready).
//!
//! # Calls that are made in a task of the client
//!
//! [`ExternalLayer`](crate::http::ExternalLayer) inside of tower's `Buffer` is called by the task
//! of the buffer, outside of every unit of work: nothing is counted or bounded. *Remedy:* put it
//! around the buffer.
//!
//! # Spawned tasks
//!
//! They are not counted, and continue when the work has ended or was cut. *Remedy:*
//! [`in_current_budget`](crate::BudgetExt::in_current_budget) counts it, and a budget of its own
//! ([`budgeted`](crate::BudgetExt::budgeted)) also ends it.
//!
//! The tasks of a `tokio::task::LocalSet` belong to where the set is polled: in one that the work
//! itself runs they are counted, carried or not; in one in which the work runs they are not. *Remedy:*
//! carry them along; what is carried is counted once either way.
//!
//! # What a database does by itself
//!
//! A statement is what the driver was given. What a trigger, a function or a procedure executes is
//! part of it: one query, and one write if the statement itself is one. *Remedy:*
//! [`query_time`](crate::Budget::query_time) and [`slow_query`](crate::Budget::slow_query) have
//! their cost.
//!
//! A statement that was cut may go on in the server. *Remedy:* [bound it
//! there](crate::sqlx#cancellation).
//!
//! A statement of SQLite that returns no row for a long time, such as an aggregate over a large
//! table, runs to its end on the thread of the driver. If the database is in memory, the pool waits
//! for it. *Remedy:* use a database in a file, whose connection is closed, so that the pool can
//! open another one.
//!
//! sqlx's pool closes a connection if the task that acquires it is dropped while the pool tests the
//! connection, and with the last connection a database in memory is lost. *Remedy:*
//! `PoolOptions::test_before_acquire(false)`.
//!
//! Statements on sqlx's own pool, or on a connection that was passed as one of sqlx, are not
//! counted. *Remedy:* [`SqlxEvents`](crate::db::SqlxEvents) counts them after their execution, so
//! that they cannot be refused.
//!
//! # Memory
//!
//! What other threads allocate is not counted: those of SQLite's driver, `spawn_blocking` that is
//! not carried along. Nor is what does not pass through the global allocator. A limit is looked at
//! when a poll ends, so one allocation too large for the process is not prevented. *Remedy:* carry
//! closures along ([`task::spawn_blocking`](crate::task::spawn_blocking));
//! [`task::checkpoint`](crate::task::checkpoint) looks within a poll; a limit of the operating
//! system is the last resort. The details: [`alloc`](crate::alloc).
//!
//! # A process that ends
//!
//! A process that is killed or aborts, as at a panic with `panic = "abort"`, reports nothing of the
//! work in flight. *Remedy:* most limits are reported as soon as they are crossed; see to it that
//! the subscriber does not buffer that.
//!
//! # A runtime without timers
//!
//! Where no tokio runtime with time enabled polls the work, its time is looked at on each poll, and
//! what waits for ever is never cut; an event with the target
//! [`HEALTH`](crate::report::fields::HEALTH) warns of it. *Remedy:* `enable_time`.
