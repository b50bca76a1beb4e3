//! What the process holds after a round, when nothing runs and the books are empty.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;

use crate::ledger::Ledger;

#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes that the allocator has handed out and not got back.
    pub live: u64,
    /// In KiB.
    pub resident: u64,
    /// Sockets and files that are open.
    pub files: u64,
    started: u64,
}

impl Memory {
    pub fn now(live: u64, ledger: &Ledger) -> Self {
        let started = ledger.totals.started.load(Relaxed);
        let files = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
        Self { live, resident: peers::server::resident(), files, started }
    }
}

/// By how much the live bytes may differ: eight times what they do from round to round, as
/// connections that were made anew have other statements in their caches. In ten minutes the
/// smallest allocation (16 bytes), left by every tenth unit of work, is more.
const MOST_LIVE: i64 = 64 << 10;
/// In KiB, and only with one arena of glibc's: with one a thread, each grows to its own peak, at
/// another time.
const MOST_RESIDENT: i64 = 8 << 10;
/// Sockets to servers, which pools open when they first need them, and files of SQLite.
const MOST_FILES: i64 = 16;

/// Prints how memory went, and fails what is not flat.
pub fn check(all: &[Memory], ledger: &Ledger) {
    let [first, .., last] = all else { return };
    let at = |quarter: usize| all.len() * quarter / 4;
    let places = [first, &all[at(1)], &all[at(2)], last];
    let list =
        |field: fn(&Memory) -> u64| places.map(|memory| field(memory).to_string()).join(", ");
    println!(
        "memory after the first round, at 1/4, at 1/2, at the end: live bytes {}; resident KiB {}; files {}",
        list(|memory| memory.live),
        list(|memory| memory.resident),
        list(|memory| memory.files)
    );
    // Of the rounds of a quarter the least: what is left of work adds up in it too, what caches
    // hold does not.
    let least = |of: &[Memory], field: fn(&Memory) -> u64| of.iter().map(field).min().unwrap_or(0);
    let grown = |field| {
        least(&all[at(3)..], field).cast_signed() - least(&all[at(1)..at(2)], field).cast_signed()
    };
    let works = grown(|memory| memory.started);
    let live = grown(|memory| memory.live);
    let resident = grown(|memory| memory.resident);
    let files = grown(|memory| memory.files);
    let has_one_arena = std::env::var("MALLOC_ARENA_MAX").is_ok_and(|arenas| arenas == "1");
    println!(
        "memory: in {works} units of work from the second quarter to the last {live:+} live bytes, \
         {resident:+} KiB resident{}, {files:+} files",
        if has_one_arena { "" } else { " (not compared: there is more than one arena)" }
    );
    if live > MOST_LIVE {
        ledger.fail("memory is flat", || format!("{live:+} live bytes"));
    }
    if has_one_arena && resident > MOST_RESIDENT {
        ledger.fail("memory is flat", || format!("{resident:+} KiB resident"));
    }
    if files > MOST_FILES {
        ledger.fail("memory is flat", || format!("{files:+} files"));
    }
}
