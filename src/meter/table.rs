//! A lock-free count per statement (or name of an external system), bounded in memory.

use std::iter;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::memory;

pub(crate) use crate::key::Key;

/// How often each text was seen, and how long it took.
///
/// Grows by blocks; an entry, once taken, is never moved or freed, so readers need no lock. What does
/// not fit any more (some hundred to some thousand texts) is not told apart and only counted in `left_out`.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Most work has but one statement or none, so what is not needed for that is made when it is.
    head: OnceLock<Box<Head>>,
}

#[derive(Debug)]
struct Head {
    first: Block,
    /// Bytes of texts.
    kept: AtomicUsize,
    left_out: AtomicU64,
}

/// Who executed a statement that a witness saw.
#[cfg(feature = "witness")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The driver, for a metered connection or for itself.
    #[cfg_attr(
        not(any(feature = "sqlx", feature = "testing")),
        expect(dead_code, reason = "of sqlx")
    )]
    MeteredDriver,
    /// That cannot be told.
    Anyone,
    /// The driver, for a connection that is not metered.
    Others,
}

#[derive(Debug)]
struct Block {
    entries: Box<[Entry]>,
    next: OnceLock<Box<Self>>,
}

#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// 0 while the entry is free.
    key: AtomicU64,
    count: AtomicU64,
    nanos: AtomicU64,
    /// How often an independent witness saw it.
    #[cfg(feature = "witness")]
    seen: AtomicU64,
    text: OnceLock<Box<str>>,
}

impl Table {
    const SIZES: [usize; 5] = [8, 32, 128, 512, 1024];
    /// How many places of a block a key may be in.
    const PROBES: usize = 8;
    /// The most bytes of texts that are kept, in all.
    const MOST_BYTES: usize = 64 << 10;
    /// The most bytes that are kept of one text.
    const LONGEST: usize = 2 << 10;

    /// Counts one more of this text; returns how many there are now, or 0 if it is not told apart.
    pub(crate) fn count(&self, key: Key, text: &str) -> u64 {
        self.take(key, text, u64::MAX).unwrap_or_default()
    }

    /// Counts one more of this text, unless that would be more than so many.
    pub(crate) fn take(&self, key: Key, text: &str, most: u64) -> Option<u64> {
        let head = self.head();
        let Some(entry) = head.entry(key) else {
            head.left_out.fetch_add(1, Relaxed);
            return Some(0);
        };
        entry.text.get_or_init(|| head.keep(text));
        let one_more = |count: u64| (count < most).then(|| count.saturating_add(1));
        let before = entry.count.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(before.saturating_add(1))
    }

    /// Takes back one that was counted, because it is not executed after all.
    pub(crate) fn give_back(&self, key: Key) {
        let count = self.find(key).map_or(&self.head().left_out, |entry| &entry.count);
        count.fetch_sub(1, Relaxed);
    }

    /// Notes that a text was executed; whether that is more often than it was counted.
    ///
    /// Counting comes first, so there is no order in which this is wrong for long: if an uncounted
    /// execution is seen before a counted one, the latter is the one too many.
    #[cfg(feature = "witness")]
    pub(crate) fn witness(&self, key: Key, text: &str, by: By) -> bool {
        let entry = match by {
            // Either counted, or a statement of the driver's own.
            By::MeteredDriver => self.find(key),
            By::Anyone | By::Others => self.head().entry(key),
        };
        let Some(entry) = entry else { return by == By::Others };
        let seen = entry.seen.fetch_add(1, Relaxed).saturating_add(1);
        let is_uncounted = match by {
            By::MeteredDriver => false,
            By::Anyone => seen > entry.count(),
            By::Others => true,
        };
        if is_uncounted {
            entry.text.get_or_init(|| self.head().keep(text));
        }
        is_uncounted
    }

    /// Every text that was executed more often than it was counted, with how often more.
    #[cfg(feature = "witness")]
    pub(crate) fn uncounted(&self) -> impl Iterator<Item = (&Entry, u64)> {
        let more = |entry: &Entry| entry.seen.load(Relaxed).saturating_sub(entry.count());
        let all = self.blocks().flat_map(|block| &*block.entries);
        all.map(move |entry| (entry, more(entry))).filter(|(_, more)| *more > 0)
    }

    /// Adds to the time of a text that was counted before.
    pub(crate) fn add_time(&self, key: Key, nanos: u64) {
        if let Some(entry) = self.find(key) {
            entry.nanos.fetch_add(nanos, Relaxed);
        }
    }

    pub(crate) fn find(&self, key: Key) -> Option<&Entry> {
        self.blocks()
            .find_map(|block| block.probe(key).find(|entry| entry.key.load(Relaxed) == key.raw()))
    }

    /// The entry that was counted most often.
    pub(crate) fn most(&self) -> Option<&Entry> {
        self.iter().max_by_key(|entry| entry.count())
    }

    /// Every text that is told apart.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let taken = |entry: &&Entry| entry.count() > 0;
        self.blocks().flat_map(|block| &*block.entries).filter(taken)
    }

    /// How often a text was counted that could not be told apart.
    pub(crate) fn left_out(&self) -> u64 {
        self.head.get().map_or(0, |head| head.left_out.load(Relaxed))
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        let first = self.head.get().map(|head| &head.first);
        iter::successors(first, |block| block.next.get().map(|next| &**next))
    }

    fn head(&self) -> &Head {
        self.head.get_or_init(|| {
            memory::aside(|| {
                let first = Block::new(Self::SIZES[0]);
                Box::new(Head { first, kept: AtomicUsize::new(0), left_out: AtomicU64::new(0) })
            })
        })
    }
}

impl Head {
    /// The entry of this key, taken now if need be.
    ///
    /// Every thread looks at the same places in the same order and a place is never given back, so
    /// no key gets two entries.
    fn entry(&self, key: Key) -> Option<&Entry> {
        let mut block = &self.first;
        let mut sizes = Table::SIZES[1..].iter();
        loop {
            for entry in block.probe(key) {
                // Mostly it is there: looking is cheaper than exchanging.
                if entry.is_of(key) {
                    return Some(entry);
                }
                match entry.key.compare_exchange(0, key.raw(), Relaxed, Relaxed) {
                    Ok(_) => return Some(entry),
                    Err(other) if other == key.raw() => return Some(entry),
                    Err(_) => {}
                }
            }
            let size = *sizes.next()?;
            block = block.next.get_or_init(|| memory::aside(|| Box::new(Block::new(size))));
        }
    }

    /// The text to keep: whole, or its beginning, or nothing once too much is kept.
    fn keep(&self, text: &str) -> Box<str> {
        let text = &text[..text.floor_char_boundary(Table::LONGEST)];
        let before = self.kept.fetch_add(text.len(), Relaxed);
        if before.saturating_add(text.len()) > Table::MOST_BYTES {
            return Box::default();
        }
        memory::aside(|| text.into())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some(head) = self.head.take() {
            // What was not charged to anybody must not be taken off anybody's account either.
            memory::aside(|| drop(head));
        }
    }
}

impl Block {
    fn new(size: usize) -> Self {
        Self {
            entries: iter::repeat_with(Entry::default).take(size).collect(),
            next: OnceLock::new(),
        }
    }

    fn probe(&self, key: Key) -> impl Iterator<Item = &Entry> {
        let mask = self.entries.len().wrapping_sub(1) as u64;
        let places = Table::PROBES.min(self.entries.len()) as u64;
        (0..places).map(move |step| {
            // Truncation is harmless: the mask is smaller than any `usize`.
            &self.entries[(key.raw().wrapping_add(step) & mask) as usize]
        })
    }
}

impl Entry {
    pub(crate) fn is_of(&self, key: Key) -> bool {
        self.key.load(Relaxed) == key.raw()
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    pub(crate) fn nanos(&self) -> u64 {
        self.nanos.load(Relaxed)
    }

    /// The text, or its beginning; empty when too much was kept already.
    pub(crate) fn text(&self) -> &str {
        self.text.get().map_or("", |text| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(table: &Table, text: &str) -> u64 {
        table.count(Key::of(text), text)
    }

    #[test]
    fn each_text_has_its_own_count() {
        let table = Table::default();
        assert_eq!([count(&table, "a"), count(&table, "b"), count(&table, "a")], [1, 1, 2]);
        let most = table.most().expect("two texts were counted");
        assert_eq!((most.text(), most.count()), ("a", 2));
    }

    #[test]
    fn every_execution_is_counted_or_left_out() {
        let table = Table::default();
        for _ in 0..2 {
            for n in 0..100_000 {
                count(&table, &n.to_string());
            }
        }
        let kept: u64 = table.iter().map(Entry::count).sum();
        assert_eq!(kept + table.left_out(), 200_000);
        assert!(table.iter().all(|entry| entry.count() == 2));
        let most: usize = Table::SIZES.iter().sum();
        assert!((most / 2..=most).contains(&table.iter().count()));
    }

    #[test]
    fn the_texts_kept_are_bounded() {
        let table = Table::default();
        for n in 0..1_000 {
            count(&table, &format!("{n}{}", "x".repeat(10_000)));
        }
        assert!(table.iter().map(|entry| entry.text().len()).sum::<usize>() <= Table::MOST_BYTES);
    }

    #[test]
    fn threads_agree_on_the_entries() {
        let table = Table::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1_000 {
                        count(&table, &(n % 50).to_string());
                    }
                });
            }
        });
        assert_eq!(table.iter().count(), 50);
        assert!(table.iter().all(|entry| entry.count() == 80));
    }
}
