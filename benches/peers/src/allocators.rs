//! What an allocator costs; each has a process of its own, because a program has only one.

use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::measure::{Side, interleave, print_ratios};

/// The programs in `src/bin`, the one that the others are compared with first.
const ALL: [(&str, &str); 13] = [
    ("alloc_system", "`System`"),
    ("alloc_ours", "ours over `System`, idle"),
    // To compare the next one with: a runtime has allocated before.
    ("alloc_system_runtime", "`System`, polled by a runtime"),
    ("alloc_ours_scope", "ours over `System`, counting for a request"),
    ("alloc_mimalloc", "mimalloc"),
    ("alloc_ours_mimalloc", "ours over mimalloc"),
    ("alloc_jemalloc", "jemalloc"),
    ("alloc_ours_jemalloc", "ours over jemalloc"),
    ("alloc_stats", "stats_alloc"),
    ("alloc_cap", "cap"),
    ("alloc_tracking", "tracking-allocator"),
    ("alloc_counter", "allocation-counter, idle"),
    ("alloc_counter_measuring", "allocation-counter, counting"),
];

/// What one process measures, and prints a line each of.
const AXES: [&str; 4] = [
    "Allocator: 64 bytes allocated and freed, 1 thread",
    "Allocator: 64 bytes allocated and freed, 2 threads",
    "Allocator: JSON parsed into types, 1 thread",
    "Allocator: JSON parsed into types, 2 threads",
];

/// Starts each program again and again, and prints a table for each axis.
pub fn run(time: Duration) {
    let exe = std::env::current_exe().expect("has a path");
    let values: std::cell::RefCell<Vec<Vec<[f64; 4]>>> = vec![Vec::new(); ALL.len()].into();
    let sides = ALL.iter().enumerate().map(|(index, (program, name))| {
        let program = exe.with_file_name(program);
        let values = &values;
        Side::new(*name, move || {
            let output = Command::new(&program).output().expect("starts");
            let text = String::from_utf8(output.stdout).expect("is text");
            let mut numbers = text.split_whitespace().map(|n| n.parse().expect("is a number"));
            let measured = [(); 4].map(|()| numbers.next().expect("one an axis"));
            values.borrow_mut()[index].push(measured);
            0.0
        })
    });
    let names = interleave(sides.collect(), time);
    for (axis, title) in AXES.iter().enumerate() {
        let series: Vec<_> = names
            .iter()
            .zip(&*values.borrow())
            .map(|(side, values)| crate::measure::Series {
                name: side.name.clone(),
                values: values.iter().map(|value| value[axis]).collect(),
            })
            .collect();
        print_ratios(title, &series);
    }
}

/// Has a program of its own count allocations, and prints its table.
pub fn allocations() {
    let exe = std::env::current_exe().expect("has a path");
    let status = Command::new(exe.with_file_name("allocations")).status().expect("starts");
    assert!(status.success(), "it counts");
}

/// Measures the allocator of this very program; the `main` of each.
///
/// What is measured runs inside a call of `around`, once on each thread.
pub fn probe(around: fn(&mut dyn FnMut())) {
    const PAIRS: u64 = 300_000;
    const PARSES: u64 = 400;
    for (turn, count) in [(pair as fn(), PAIRS), (parse as fn(), PARSES)] {
        for threads in [1, 2] {
            println!("{}", on_threads(threads, count, turn, around));
        }
    }
}

/// Allocates and frees in a loop, for a count of instructions.
pub fn pairs_only(count: u64) {
    for _ in 0..count {
        pair();
    }
}

/// The best of a few rounds: the least disturbed one. The spread is that of the processes.
fn on_threads(threads: usize, count: u64, turn: fn(), around: fn(&mut dyn FnMut())) -> f64 {
    const ROUNDS: usize = 5;
    let start = Barrier::new(threads);
    let measure = || {
        let mut best = f64::INFINITY;
        around(&mut || {
            turn();
            start.wait();
            for _ in 0..ROUNDS {
                let since = Instant::now();
                for _ in 0..count {
                    turn();
                }
                best = best.min(since.elapsed().as_nanos() as f64 / count as f64);
            }
        });
        best
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(measure)).collect();
        all.into_iter().map(|one| one.join().expect("measures")).sum::<f64>() / threads as f64
    })
}

fn pair() {
    drop(black_box(Vec::<u8>::with_capacity(black_box(64))));
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "it is only made")]
struct Post {
    id: u64,
    title: String,
    tags: Vec<String>,
    author: Author,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "it is only made")]
struct Author {
    name: String,
    email: Option<String>,
}

fn parse() {
    const POST: &str = r#"{"id":7,"title":"the title of a post","tags":["one","two","three","four"],
        "author":{"name":"somebody of some name","email":"somebody@example.org"}}"#;
    static POSTS: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| format!("[{}]", vec![POST; 20].join(",")));
    let posts: Vec<Post> = serde_json::from_str(&POSTS).expect("is valid");
    black_box(posts);
}
