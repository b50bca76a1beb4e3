//! Runs a number of requests through one side, so that `benches/instructions/run` can count the
//! instructions of each with callgrind.
//!
//! Only what runs inside of [`region::counted`] is counted: the start of the program and the client
//! are not. Two runs of different length are subtracted from each other,
//! so what happens once is not counted either.

mod bare;
mod region;
mod served;

use std::time::Duration;

use request_budget::alloc::CountingAllocator;
use request_budget::{Budget, BudgetLayer};
use tower::Layer;
use tower::layer::util::Identity;
use tower_http::timeout::TimeoutLayer;

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

/// Every limit that is checked by comparing, and the timer; none is crossed.
fn every_limit() -> Budget {
    let (many, long) = (u64::MAX / 2, Duration::from_secs(30));
    Budget::new()
        .queries(many)
        .repeated_queries(many)
        .rows(many)
        .transactions(many)
        .query_time(long)
        .slow_query(long)
        .connection_wait(long)
        .memory(many)
        .allocated(many)
        .retained(many)
        .external_calls(many)
        .external_time(long)
        .external_timeout(long)
        .total_time(long)
        .slow_request(long)
        .response_bytes(many)
        .body_idle(long)
}

fn ours() -> BudgetLayer<Budget> {
    BudgetLayer::new(every_limit())
}

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(http::StatusCode::REQUEST_TIMEOUT, Duration::from_secs(30))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, side, requests] = &args[..] else {
        panic!("usage: instructions KIND SIDE REQUESTS")
    };
    let requests: u32 = requests.parse().expect("REQUESTS is a number");

    // As in production: a subscriber is installed, and filters out what nobody reads.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::sink)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime is built").block_on(async {
        match kind.as_str() {
            "ready" | "pending" | "pending-ten" => {
                let handler = bare::Handler::pending(match kind.as_str() {
                    "ready" => 0,
                    "pending" => 1,
                    _ => 11,
                });
                match side.as_str() {
                    "none" => bare::run(handler, requests).await,
                    "empty" => bare::run(Identity::new().layer(handler), requests).await,
                    "timeout" => bare::run(timeout().layer(handler), requests).await,
                    "ours" => bare::run(ours().layer(handler), requests).await,
                    _ => panic!("no such side: {side}"),
                }
            }
            "statement" => {
                let handler = bare::Lookup { is_metered: side == "ours" };
                match side.as_str() {
                    "none" => bare::run(handler, requests).await,
                    "empty" => bare::run(Identity::new().layer(handler), requests).await,
                    "timeout" => bare::run(timeout().layer(handler), requests).await,
                    "ours" => bare::run(ours().layer(handler), requests).await,
                    _ => panic!("no such side: {side}"),
                }
            }
            "route" => match side.as_str() {
                "none" => served::run(served::hello(), requests).await,
                "empty" => served::run(served::hello().layer(Identity::new()), requests).await,
                "timeout" => served::run(served::hello().layer(timeout()), requests).await,
                "ours" => served::run(served::hello().layer(ours()), requests).await,
                _ => panic!("no such side: {side}"),
            },
            "around" => match side.as_str() {
                "none" => served::run(served::hello(), requests).await,
                "empty" => served::run(Identity::new().layer(served::hello()), requests).await,
                "timeout" => served::run(timeout().layer(served::hello()), requests).await,
                "ours" => served::run(ours().layer(served::hello()), requests).await,
                _ => panic!("no such side: {side}"),
            },
            _ => panic!("no such kind: {kind}"),
        }
    });
}
