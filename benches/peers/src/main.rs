//! Measures ours and the peers, side by side, and prints the tables of `BENCHMARKS.md`.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml [-- SECTIONS [SECONDS]]`

use std::time::Duration;

use request_budget::alloc::CountingAllocator;
use tracing::Level;

// As in a program that is on its way to production: every side runs with it.
#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let section = args.first().map_or("all", String::as_str);
    let is_wanted =
        |name: &str| section == "all" || section.split(',').any(|wanted| wanted == name);
    let seconds = args.get(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(10.0);
    let time = Duration::from_secs_f64(seconds);

    if section == "soak" {
        // Has a subscriber of its own, which counts.
        return peers::server::soak(Duration::from_secs_f64(seconds));
    }
    tracing_subscriber::fmt().with_max_level(Level::INFO).with_writer(std::io::sink).init();
    if is_wanted("layers") {
        peers::layers::run(time, args.get(2).map(String::as_str));
    }
    if is_wanted("scale") {
        peers::scale::run(time);
        peers::allocators::allocations();
    }
    if is_wanted("queries") {
        peers::queries::run(time);
    }
    if is_wanted("allocators") {
        peers::allocators::run(time * 3);
    }
    if is_wanted("server") {
        peers::server::run(time);
    }
    // Last: once there is a client of ours, the handlers of all servers lie in a box each.
    if is_wanted("mongo") {
        peers::mongo::run(time);
    }
    if section == "query-only" {
        peers::queries::query_only(&args[1], args[2].parse().expect("is a number"));
    }
    if section == "server-only" {
        peers::server::serve_only(&args[1], args[2].parse().expect("is a number"));
    }
    if section == "serve-only" {
        let number = |at: usize| args[at].parse().expect("is a number");
        peers::layers::serve_only(&args[1], number(2), number(3));
    }
}
