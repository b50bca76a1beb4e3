//! What the main build cannot link, or is too heavy for it: other versions of sqlx and SeaORM, and
//! the AWS SDK.

mod aws;
mod check;
mod plain;
mod sea_orm;
mod server;
mod sqlite;
#[path = "../../databases/steps.rs"]
mod steps;
#[path = "../../databases/suite.rs"]
mod suite;

use std::io;

use libtest_mimic::Arguments;
use request_budget::db::SqlxEvents;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::suite::Suite;

fn main() {
    let arguments = Arguments::from_args();
    let wanted = |metadata: &Metadata<'_>| {
        metadata.target() == "sqlx::query" || metadata.is_span() && *metadata.level() <= Level::INFO
    };
    let events = SqlxEvents::new().with_filter(filter_fn(wanted));
    let log = fmt::layer().with_writer(io::sink).with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(events).with(log).init();

    let mut suite = Suite::default();
    aws::tests(&mut suite);
    plain::tests(&mut suite);
    sea_orm::tests(&mut suite);
    sqlite::tests(&mut suite);
    libtest_mimic::run(&arguments, suite.trials).exit();
}
