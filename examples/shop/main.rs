//! A small shop on axum and SQLite, with endpoints that behave and endpoints that do not.
//!
//! `cargo run --example shop` starts it, sends it real requests over loopback HTTP, prints what
//! each one used and which limits it crossed, and ends. With `-- --serve` it goes on serving until
//! Ctrl-C.

mod app;
mod args;
mod catalogue;
mod data;
mod drive;
mod findings;
mod jobs;
mod ledger;
mod payments;
mod serve;
mod table;
mod trouble;

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use request_budget::alloc::CountingAllocator;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::app::Shop;
use crate::args::{Plan, USAGE};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator::system();

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let plan = match args::parse(std::env::args_os().skip(1)) {
        Ok(plan) => plan,
        Err(message) => {
            eprintln!("error: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // Violations are printed by the shop itself; what is left are warnings about what cannot be
    // measured.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,request_budget::violation=off"));
    // One line for the panic that is there on purpose: a backtrace would bury the table.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    match run(plan).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(plan: Plan) -> Result<(), Failure> {
    let port = match plan {
        Plan::Help => return print(USAGE),
        Plan::Drive => 0,
        Plan::Serve { port } => port,
    };
    let listener = listen(port).await?;
    let store = data::Store::create().await?;
    let payments = payments::start(listen(0).await?)?;
    let shop = Shop::new(store.pool(), payments);

    let done = match plan {
        Plan::Serve { .. } => serve::until_interrupted(listener, shop).await,
        _ => tokio::select! {
            done = drive::all(listener, shop) => done,
            () = serve::interrupt() => Err("interrupted".into()),
        },
    };
    store.remove().await;
    done
}

async fn listen(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        format!("cannot listen on 127.0.0.1:{port}: {error}; choose another port with --port N")
            .into()
    })
}

/// Prints a line; somebody who has stopped reading (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write, stdout};
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}
