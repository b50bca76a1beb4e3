//! A soak with faults: random requests and jobs on every database, cut, hung up on, panicking, with
//! PostgreSQL restarted meanwhile; in rounds, after each of which everything is compared with what
//! should be.
//!
//! `benches/soak --help` has the arguments, and `BENCHMARKS.md` what is checked.

mod args;
mod check;
mod clients;
mod errors;
mod ledger;
mod memory;
mod postgres;
mod random;
mod server;
mod sql;
mod works;

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cap::Cap;
use request_budget::Usage;
use request_budget::alloc::CountingAllocator;
use request_budget::sqlx::Pool;
use sqlx::{MySql, Postgres, Sqlite};
use tokio::runtime::{Builder, Runtime};

use args::Args;
use check::Checks;
use clients::Seen;
use ledger::{Ledger, OUTCOMES, Store};
use memory::Memory;
use random::Random;
use server::Stop;
use sql::Sql;
use works::{Mongo, Stores};

/// Ours as users have it, over one that knows what is live in the whole program.
#[global_allocator]
static ALLOC: CountingAllocator<Cap<System>> = CountingAllocator::new(Cap::new(System, usize::MAX));

/// How panics begin that are part of the soak.
pub const ON_PURPOSE: &str = "on purpose";

static PANICS: AtomicU64 = AtomicU64::new(0);

fn main() {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            println!("{message}");
            std::process::exit(2);
        }
    };
    let is_good = soak(&args);
    println!("{}", if is_good { "PASS" } else { "FAILED" });
    std::process::exit(i32::from(!is_good));
}

fn soak(args: &Args) -> bool {
    Random::seed(args.seed);
    quiet_panics();
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink);
    subscriber.with_max_level(tracing::Level::INFO).init();

    let ledger = Arc::new(Ledger::default());
    let server = workers(&ledger);
    let client =
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds");
    let here = Builder::new_current_thread().enable_all().build().expect("builds");
    let folder = std::env::temp_dir().join(format!("request-budget-soak.{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("makes a folder");

    let mut restarted = args.is_on(Store::Postgres).then(|| match postgres::Server::start() {
        Ok(server) => server,
        Err(error) => panic!("PostgreSQL: {error}"),
    });
    let sqlite = format!("sqlite://{}/soak.db", folder.display());
    let urls = Urls {
        sqlite: args.is_on(Store::Sqlite).then_some(sqlite),
        postgres: restarted.as_ref().map(|server| server.url.clone()),
        mariadb: args.url(Store::Mariadb, "REQUEST_BUDGET_MYSQL_URL"),
        mongodb: args.url(Store::Mongodb, "REQUEST_BUDGET_MONGODB_URL"),
    };
    let mut checks = Checks::new(urls, ledger.clone());
    here.block_on(checks.prepare());
    let stores = Arc::new(server.block_on(connect(&checks.urls)));
    let paths = args.paths(&checks.urls);
    let address = server.block_on(server::serve(&paths, stores.clone(), ledger.clone()));
    println!("soak: {} kinds of work, seed {}, {:?}", paths.len(), args.seed, args.time);

    let seen = Arc::new(Seen::default());
    let rounds = args.rounds();
    let begun = Instant::now();
    let mut held = Vec::new();
    let mut restarts = 0;
    let random = Random::new(7);
    println!("{HEADER}");
    let mut is_good = true;
    for round in 0..rounds {
        let stop = Stop::default();
        let load = Load { server: &server, client: &client, ledger: &ledger, stop: &stop };
        let jobs = load.begin(args, address, &paths, &stores, &seen);
        let time = args.time / rounds;
        let ends = Instant::now() + time;
        if let Some(postgres) = &mut restarted {
            std::thread::sleep(time.mul_f64(0.2 + 0.3 * random.unit()));
            let signal = *random.pick(&["INT", "QUIT"]);
            if let Err(error) = postgres.restart(signal, 0.3 * random.unit()) {
                ledger.fail("restarts", || error);
            }
            restarts += 1;
        }
        std::thread::sleep(ends.saturating_duration_since(Instant::now()));
        stop.set();
        let since = Instant::now();
        let is_drained = here.block_on(checks.drain(jobs));
        let drained = since.elapsed();
        if !is_drained {
            is_good = false;
            break;
        }
        here.block_on(checks.run(&server, &stores));
        let checked = since.elapsed() - drained;
        ledger.forget();
        held.push(Memory::now(ALLOC.get_ref().allocated() as u64, &ledger));
        print_round(round, &seen, drained, checked, held[held.len() - 1]);
        if PANICS.load(Relaxed) > 0 {
            let panics = PANICS.load(Relaxed);
            ledger.fail("no panic that is not on purpose", || format!("{panics}, see above"));
        }
        if ledger.has_failures() && !args.keeps_going {
            break;
        }
    }
    memory::check(&held, &ledger);
    is_good &= !ledger.print_failures();
    print_totals(&ledger, &seen, restarts, begun.elapsed());
    here.block_on(checks.tidy());
    drop(restarted);
    drop(std::fs::remove_dir_all(&folder));
    // What is wedged can be waited for by nobody.
    server.shutdown_background();
    client.shutdown_background();
    is_good
}

/// Where the databases are, of those that are on.
pub struct Urls {
    pub sqlite: Option<String>,
    pub postgres: Option<String>,
    pub mariadb: Option<String>,
    pub mongodb: Option<String>,
}

/// The threads of the server, which look after every piece of work whether a scope was left behind.
fn workers(ledger: &Arc<Ledger>) -> Runtime {
    let look = |ledger: &Arc<Ledger>, when: &'static str| {
        let ledger = ledger.clone();
        move || {
            if Usage::current().is_some() {
                ledger.fail("no scope left", || format!("on a thread that {when}"));
            }
        }
    };
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_park(look(ledger, "parks"))
        .on_thread_stop(look(ledger, "ends"))
        .build()
        .expect("builds")
}

async fn connect(urls: &Urls) -> Stores {
    async fn pool<DB: Sql>(url: &Option<String>) -> Option<Pool<DB>> {
        let url = url.as_deref()?;
        Some(DB::pool(url).await.expect("connects, and makes its tables"))
    }
    let mongodb = match &urls.mongodb {
        Some(url) => {
            Some(Mongo { client: check::mongo_client(url).await, database: check::database() })
        }
        None => None,
    };
    Stores {
        sqlite: pool::<Sqlite>(&urls.sqlite).await,
        postgres: pool::<Postgres>(&urls.postgres).await,
        mariadb: pool::<MySql>(&urls.mariadb).await,
        mongodb,
        silent: server::silent().await,
    }
}

struct Load<'a> {
    server: &'a Runtime,
    client: &'a Runtime,
    ledger: &'a Arc<Ledger>,
    stop: &'a Stop,
}

impl Load<'_> {
    fn begin(
        &self,
        args: &Args,
        address: std::net::SocketAddr,
        paths: &[String],
        stores: &Arc<Stores>,
        seen: &Arc<Seen>,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let (ledger, stop) = (self.ledger, self.stop);
        let shared: Arc<[String]> = paths.into();
        let mut all: Vec<_> = (0..args.clients)
            .map(|number| {
                let (paths, seen) = (shared.clone(), seen.clone());
                self.client.spawn(clients::run(
                    number,
                    address,
                    paths,
                    ledger.clone(),
                    seen,
                    stop.clone(),
                ))
            })
            .collect();
        all.push(self.server.spawn(server::jobs(
            paths.to_vec(),
            stores.clone(),
            ledger.clone(),
            stop.clone(),
        )));
        let (ledger, stop) = (ledger.clone(), stop.clone());
        all.push(self.client.spawn(async move {
            while !stop.is_set() {
                let answer = clients::is_alive(address, "/other/hello");
                match tokio::time::timeout(Duration::from_secs(10), answer).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => ledger.fail("the server answers", || error.to_string()),
                    Err(_) => ledger.fail("the server answers", || "not in 10 seconds".to_owned()),
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }));
        all
    }
}

/// Says nothing of panics that belong to the soak.
fn quiet_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        if !message.starts_with(ON_PURPOSE) {
            PANICS.fetch_add(1, Relaxed);
            usual(info);
        }
    }));
}

const HEADER: &str = "round  sent      ok  errors     cut    torn hung up   drain  checks     live B    RSS KiB files";

fn print_round(round: u32, seen: &Seen, drained: Duration, checked: Duration, memory: Memory) {
    let counts = [&seen.sent, &seen.ok, &seen.errors, &seen.cut, &seen.torn, &seen.hung_up];
    let [sent, ok, errors, cut, torn, hung_up] = counts.map(|count| count.load(Relaxed));
    println!(
        "{round:>3} {sent:>7} {ok:>7} {errors:>7} {cut:>7} {torn:>7} {hung_up:>7} {:>6.2}s {:>6.2}s {:>10} {:>10} {:>5}",
        drained.as_secs_f64(),
        checked.as_secs_f64(),
        memory.live,
        memory.resident,
        memory.files
    );
}

fn print_totals(ledger: &Ledger, seen: &Seen, restarts: u32, took: Duration) {
    let totals = &ledger.totals;
    let [started, reported, committed, unknown, panics] = [
        &totals.started,
        &totals.reported,
        &totals.committed,
        &totals.unknown,
        &totals.reporter_panics,
    ]
    .map(|count| count.load(Relaxed));
    println!(
        "{took:.0?}: {} requests sent, {started} units of work started, {reported} reported",
        seen.sent.load(Relaxed)
    );
    let outcomes = OUTCOMES.iter().zip(&totals.outcomes);
    let outcomes: Vec<_> =
        outcomes.map(|(name, count)| format!("{name} {}", count.load(Relaxed))).collect();
    println!(
        "outcomes: {}; {panics} panics of reporters; {restarts} restarts of PostgreSQL",
        outcomes.join(", ")
    );
    let of_each = |counts: &[AtomicU64; 3]| {
        let counts = Store::ALL.iter().zip(counts);
        let counts =
            counts.map(|(store, count)| format!("{} {}", store.name(), count.load(Relaxed)));
        counts.collect::<Vec<_>>().join(", ")
    };
    println!(
        "connections made: {}; closed by handlers that failed on them: {}",
        of_each(&sql::CONNECTED),
        of_each(&totals.closed)
    );
    println!(
        "{committed} acknowledged writes compared with the databases, {unknown} of unknown end"
    );
}
