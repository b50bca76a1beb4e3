//! What it costs to count a statement by its event, beside the event itself.

use std::env;
use std::hint::black_box;
use std::time::Duration;

use request_budget::db::SqlxEvents;
use sqlx::Postgres;
use sqlx::postgres::PgPoolOptions;
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Event, Level, Subscriber, event};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{Bench, Case, POSTGRES, Side, fetch, in_scope, quartiles};

pub(super) async fn measure(bench: &Bench) {
    let name = "observed, the event alone";
    if bench.wants(name) {
        let mut rounds = Vec::new();
        bench.rounds(&mut Emitted(Subscribers::new()), 1, &mut rounds).await;
        bench.print::<Emitted>(name, &rounds);
        print_more(&rounds);
    }
    let name = "observed, PostgreSQL, 1 row";
    if !bench.wants(name) {
        return;
    }
    let Ok(url) = env::var(POSTGRES) else {
        println!("{name:<29}skipped: {POSTGRES} is not set");
        return;
    };
    let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.expect("connects");
    let mut connection = pool.acquire().await.expect("is there");
    let create =
        "CREATE TEMP TABLE posts AS SELECT 7::bigint AS id, 'the title of post 7' AS title";
    sqlx::query(create).execute(&mut *connection).await.expect("creates");
    let mut case = Observed { connection, subscribers: Subscribers::new() };
    let mut rounds = Vec::new();
    bench.rounds(&mut case, 1, &mut rounds).await;
    bench.print::<Observed>(name, &rounds);
    print_more(&rounds);
}

/// How much longer the second side takes than the first.
fn print_more(rounds: &[[f64; 4]]) {
    let [low, more, high] = quartiles(rounds.iter().map(|times| (times[1] - times[0]) * 1e6));
    println!("{:<29}observed takes {more:.2}µs more, half within {low:.2} to {high:.2}", "");
}

/// Those to which the event of a statement goes.
struct Subscribers {
    event: Dispatch,
    observed: Dispatch,
}

impl Subscribers {
    fn new() -> Self {
        let event = Dispatch::new(only_sqlx(Ignores));
        Self { event, observed: Dispatch::new(only_sqlx(SqlxEvents::new())) }
    }

    /// Runs statements as a unit of work, which counts them if they are observed.
    async fn run(&self, side: Side, statements: u64, work: impl Future<Output = ()>) {
        let (subscriber, counted) = match side {
            Side::Plain | Side::PlainAgain => (self.event.clone(), 0),
            Side::InScope => (self.observed.clone(), statements),
            Side::OutOfScope => (Dispatch::none(), 0),
        };
        in_scope(counted, work).with_subscriber(subscriber).await;
    }
}

/// With DEBUG enabled on the target of sqlx, and nothing else.
fn only_sqlx<L>(layer: L) -> impl Subscriber + Send + Sync
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync,
{
    let filter = Targets::new().with_target("sqlx::query", LevelFilter::DEBUG);
    tracing_subscriber::registry().with(layer.with_filter(filter))
}

/// Is handed the events of sqlx, and ignores them.
struct Ignores;

impl<S: Subscriber> Layer<S> for Ignores {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        black_box(event);
    }
}

/// What the sides are where the first one has the event of each statement and does nothing with it.
const OBSERVED: [&str; 3] = ["observed", "no event", "event again"];

/// The event as sqlx emits it, and no statement: what the layer adds, with the least error.
struct Emitted(Subscribers);

impl Case for Emitted {
    const NAMES: [&'static str; 3] = OBSERVED;

    async fn run(&mut self, side: Side) {
        let work = async {
            for _ in 0..self.statements() {
                let elapsed = Duration::from_micros(50);
                event!(
                    target: "sqlx::query",
                    Level::DEBUG,
                    summary = "SELECT id, title FROM …",
                    db.statement = "\n\nSELECT id, title FROM posts WHERE id = 7\n",
                    rows_affected = 1_u64,
                    rows_returned = 1_u64,
                    ?elapsed,
                    elapsed_secs = elapsed.as_secs_f64(),
                );
            }
        };
        self.0.run(side, self.statements(), work).await;
    }

    fn statements(&self) -> u64 {
        200
    }
}

/// A plain connection.
struct Observed {
    connection: sqlx::pool::PoolConnection<Postgres>,
    subscribers: Subscribers,
}

impl Case for Observed {
    const NAMES: [&'static str; 3] = OBSERVED;

    async fn run(&mut self, side: Side) {
        let statements = self.statements();
        let Self { connection, subscribers } = self;
        let work = async {
            for _ in 0..statements {
                let statement = "SELECT id, title FROM posts WHERE id = 7";
                fetch(&mut **connection, statement, 1).await;
            }
        };
        subscribers.run(side, statements, work).await;
    }

    fn statements(&self) -> u64 {
        20
    }
}
