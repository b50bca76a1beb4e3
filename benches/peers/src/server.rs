//! A whole server under load: axum on hyper over loopback, and what it serves with a layer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::map_response;
use axum::routing::get;
use axum::serve::{ListenerExt, TapIo};
use core_affinity::CoreId;
use http::{Response, StatusCode};
use request_budget::{Budget, BudgetLayer, http::ResponseBody, sqlx::Pool};
use sqlx::SqlitePool;
use sqlx::sqlite::SqlitePoolOptions;
use tower::ServiceBuilder;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::layers::every_limit;
use crate::measure::{Side, interleave, print_ratios};

/// Requests in one write of a client: at one a write, the kernel would be all that is measured.
const PIPELINE: usize = 16;
const CONNECTIONS: usize = 4;

static CORES: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().unwrap_or_default());

/// Measures and prints the time a server takes for a request when it is never idle.
///
/// Servers have a core of their own, with SQLite's threads, and the client another: where the
/// kernel puts them would make more of a difference than what is measured.
pub fn run(time: Duration) {
    let client = || {
        if let Some(core) = CORES.first() {
            core_affinity::set_for_current(*core);
        }
        run_on_this_core(time);
    };
    // While this thread may still run on all.
    LazyLock::force(&CORES);
    thread::scope(|scope| scope.spawn(client).join().expect("measures"));
}

fn run_on_this_core(time: Duration) {
    let hello = || Router::new().route("/posts", get(async || "hello"));
    let servers = vec![
        ("no layer", start(async move || hello())),
        (
            "an empty layer as `Router::layer`",
            start(async move || hello().layer(map_response(same))),
        ),
        ("ours, every limit, as `Router::layer`", start(async move || hello().layer(ours()))),
        ("ours, every limit, around the router", start_around(hello(), ours())),
        ("`TimeoutLayer` as `Router::layer`", start(async move || hello().layer(timeout()))),
        (
            "`TraceLayer`, disabled, as `Router::layer`",
            start(async move || hello().layer(TraceLayer::new_for_http())),
        ),
        ("no layer again", start(async move || hello())),
    ];
    print_load("Server: a handler that does nothing, ns a request", servers, 40, time);

    latency(time);
    for queries in [1, 5] {
        let title =
            format!("Server: a handler with {queries} statement(s) of SQLite, ns a request");
        print_load(&title, with_statements(queries), 5, time);
    }
}

/// What an empty layer does.
async fn same(response: axum::response::Response) -> axum::response::Response {
    response
}

fn ours() -> BudgetLayer<Budget> {
    BudgetLayer::new(every_limit())
}

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(30))
}

/// Serves so many batches of requests with one statement on one side only, for a count of
/// instructions.
pub fn serve_only(side: &str, batches: usize) {
    let all = with_statements(1);
    let (_, address) = all.iter().find(|(name, _)| *name == side).expect("there is such a side");
    let mut clients = Client::some(*address);
    (0..batches).for_each(|_| Client::batch(&mut clients));
}

/// Servers whose handlers execute so many statements.
fn with_statements(queries: usize) -> Vec<(&'static str, SocketAddr)> {
    let plain = async move || {
        let handler = async move |State(pool): State<SqlitePool>| {
            for _ in 0..queries {
                select(&pool).await;
            }
            "hello"
        };
        Router::new().route("/posts", get(handler)).with_state(pool().await)
    };
    let metered = async move || {
        let handler = async move |State(pool): State<Pool<sqlx::Sqlite>>| {
            for _ in 0..queries {
                select(&pool).await;
            }
            "hello"
        };
        Router::new().route("/posts", get(handler)).with_state(Pool::from(pool().await))
    };
    vec![
        ("no layer, plain sqlx", start(plain)),
        (
            "an empty layer, plain sqlx",
            start(async move || plain().await.layer(map_response(same))),
        ),
        ("`TimeoutLayer`, plain sqlx", start(async move || plain().await.layer(timeout()))),
        ("ours, every limit, metered pool", start(async move || metered().await.layer(ours()))),
        ("no layer, plain sqlx, again", start(plain)),
    ]
}

fn print_load(title: &str, servers: Vec<(&str, SocketAddr)>, batches: usize, time: Duration) {
    let sides = servers.into_iter().map(|(name, address)| {
        let mut clients = Client::some(address);
        Side::new(name, move || {
            let since = Instant::now();
            (0..batches).for_each(|_| Client::batch(&mut clients));
            since.elapsed().as_nanos() as f64 / (batches * CONNECTIONS * PIPELINE) as f64
        })
    });
    print_ratios(title, &interleave(sides.collect(), time));
}

/// One client that asks for one thing after the other: how long the slowest of a hundred takes.
fn latency(time: Duration) {
    const REQUESTS: usize = 1_000;
    let hello = || Router::new().route("/posts", get(async || "hello"));
    let servers = [
        ("no layer", start(async move || hello())),
        ("ours, every limit, around the router", start_around(hello(), ours())),
        ("no layer again", start(async move || hello())),
    ];
    let sides = servers.map(|(name, address)| {
        let mut client = Client::with(address, &["/posts"]);
        Side::new(name, move || {
            let mut times: Vec<_> = (0..REQUESTS)
                .map(|_| {
                    let since = Instant::now();
                    client.send();
                    client.receive();
                    since.elapsed().as_nanos() as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            times[REQUESTS * 99 / 100]
        })
    });
    let title = "Server: the slowest of a hundred requests (p99), ns, one at a time";
    print_ratios(title, &interleave(sides.into(), time));
}

async fn pool() -> SqlitePool {
    SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.expect("opens")
}

async fn select<'c, E: sqlx::Executor<'c, Database = sqlx::Sqlite>>(executor: E) {
    sqlx::query("SELECT 1").fetch_one(executor).await.expect("is there");
}

/// Starts a server on a thread of its own.
fn start<F>(router: F) -> SocketAddr
where
    F: AsyncFnOnce() -> Router + Send + 'static,
{
    serve(async move |listener| axum::serve(listener, router().await).await)
}

fn start_around(router: Router, layer: BudgetLayer<Budget>) -> SocketAddr {
    serve(async move |listener| {
        // What `axum::serve` takes has bodies of axum's.
        let boxed = |response: Response<ResponseBody<Body>>| response.map(Body::new);
        let service = ServiceBuilder::new().map_response(boxed).layer(layer).service(router);
        axum::serve(
            listener,
            axum::ServiceExt::<axum::extract::Request>::into_make_service(service),
        )
        .await
    })
}

type Connections = TapIo<tokio::net::TcpListener, fn(&mut tokio::net::TcpStream)>;

fn serve<F>(run: F) -> SocketAddr
where
    F: AsyncFnOnce(Connections) -> std::io::Result<()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.set_nonblocking(true).expect("sets");
    let address = listener.local_addr().expect("is bound");
    thread::spawn(move || {
        if let Some(core) = CORES.last() {
            core_affinity::set_for_current(*core);
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("is a listener");
            // Or answers wait for acknowledgements that wait for answers.
            let listener = listener.tap_io(no_delay as fn(&mut _));
            run(listener).await.expect("serves");
        });
    });
    address
}

fn no_delay(stream: &mut tokio::net::TcpStream) {
    stream.set_nodelay(true).expect("sets");
}

/// A connection that asks for the same again and again.
struct Client {
    stream: TcpStream,
    requests: Vec<u8>,
    answers: Vec<u8>,
    /// The bytes of as many answers.
    expected: usize,
}

impl Client {
    fn some(address: SocketAddr) -> Vec<Self> {
        (0..CONNECTIONS).map(|_| Self::new(address, "/posts")).collect()
    }

    fn new(address: SocketAddr, path: &str) -> Self {
        Self::with(address, &[path; PIPELINE])
    }

    /// One that asks for all of these at once.
    fn with(address: SocketAddr, paths: &[&str]) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_nodelay(true).expect("sets");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
        let mut this =
            Self { stream, requests: Vec::new(), answers: vec![0; 64 << 10], expected: 0 };
        for path in paths {
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            this.stream.write_all(request.as_bytes()).expect("sends");
            // The length of an answer is that of all to the same request.
            this.expected += this.stream.read(&mut this.answers).expect("receives");
            assert!(this.answers.starts_with(b"HTTP/1.1 200"), "the handler answers");
            this.requests.extend_from_slice(request.as_bytes());
        }
        this
    }

    /// Has all of them ask, then wait.
    fn batch(clients: &mut [Self]) {
        clients.iter_mut().for_each(Self::send);
        clients.iter_mut().for_each(Self::receive);
    }

    fn send(&mut self) {
        self.stream.write_all(&self.requests).expect("sends");
    }

    fn receive(&mut self) {
        let mut left = self.expected;
        while left > 0 {
            let read = self
                .stream
                .read(&mut self.answers)
                .unwrap_or_else(|e| panic!("{e}: {left} of {} left", self.expected));
            assert!(read > 0 && read <= left, "as many answers as requests");
            left -= read;
        }
    }
}

/// Counts the events that leave.
struct Events(Arc<AtomicU64>);

impl Write for &Events {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(1, Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Half a minute of mixed requests under every limit, of which one in twenty crosses one.
pub fn soak(time: Duration) {
    let events: &'static Events = Box::leak(Box::new(Events(Arc::default())));
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || events);
    tracing::subscriber::set_global_default(subscriber.finish()).expect("is the first");

    let violations = Arc::new(AtomicU64::new(0));
    let count = violations.clone();
    let budget = every_limit().queries(1);
    let routes = |router: Router<Pool<sqlx::Sqlite>>| {
        let one = async |State(pool): State<Pool<sqlx::Sqlite>>| {
            select(&pool).await;
            "one"
        };
        let two = async |State(pool): State<Pool<sqlx::Sqlite>>| {
            select(&pool).await;
            select(&pool).await;
            "two"
        };
        router.route("/hello", get(async || "hi!")).route("/one", get(one)).route("/two", get(two))
    };
    let plain = start(async move || routes(Router::new()).with_state(Pool::from(pool().await)));
    let ours = start(async move || {
        let count = move |_: &request_budget::Violation| {
            count.fetch_add(1, Relaxed);
        };
        let layer = BudgetLayer::new(budget).with_reporter(count);
        routes(Router::new()).with_state(Pool::from(pool().await)).layer(layer)
    });

    // One in twenty asks the database twice where once is allowed.
    const CLIENTS: usize = 20;
    let paths: Vec<_> = (0..20)
        .map(|n| {
            if n == 0 {
                "/two"
            } else if n % 2 == 0 {
                "/one"
            } else {
                "/hello"
            }
        })
        .collect();
    let served = |address: SocketAddr, time: Duration| {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (is_over, paths) = (&is_over, &paths);
                    scope.spawn(move || {
                        let mut client = Client::with(address, paths);
                        let mut served = 0;
                        while !is_over.load(Relaxed) {
                            client.send();
                            client.receive();
                            served += paths.len();
                        }
                        served
                    })
                })
                .collect();
            thread::sleep(time);
            is_over.store(true, Relaxed);
            clients.into_iter().map(|client| client.join().expect("serves")).sum::<usize>()
        })
    };
    let slice = time / 20;
    let (mut without, mut with) = (0, 0);
    let mut memory = Vec::new();
    for _ in 0..10 {
        without += served(plain, slice);
        with += served(ours, slice);
        memory.push(resident());
    }
    let seconds = (slice * 10).as_secs_f64();
    println!("\nSoak: {CLIENTS} connections, {seconds:.0} s without and with, in turn\n");
    println!("| | without the layer | every limit, 1 request in 20 violating |");
    println!("|---|---:|---:|");
    let rates = [without, with].map(|n| n as f64 / seconds);
    println!(
        "| requests a second | {:.0} | {:.0} ({:.3}x) |",
        rates[0],
        rates[1],
        rates[1] / rates[0]
    );
    println!("| violations | | {} |", violations.load(Relaxed));
    println!("| events that left | | {} |", events.0.load(Relaxed));
    let (first, last) = (memory[0], memory[memory.len() - 1]);
    println!(
        "| resident memory after the first tenth, and at the end | | {first} KiB, {last} KiB |"
    );
}

/// In KiB.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
