//! A lock-free count per statement (or name of an external system), bounded in memory.

mod crowd;

use std::borrow::Cow;
use std::iter;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::memory;
use crate::writes::is_write;
use crowd::Crowd;

pub(crate) use crate::key::{DatabaseId, Key};

/// How often each text was counted, and how long it took.
///
/// Grows by blocks. An entry that is taken is never moved or freed, so readers need no lock. Texts
/// that find no free entry (beyond some hundred to some thousand) are in the [`Crowd`], which knows
/// the most frequent ones and counts the rest together.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Allocated with the first text: many works execute no statement.
    head: OnceLock<Box<Head>>,
}

#[derive(Debug)]
struct Head {
    first: Block,
    /// How many bytes of texts are kept.
    kept: AtomicUsize,
    /// Texts that have no entry.
    crowd: OnceLock<Box<Crowd>>,
    /// Executions of texts that have an entry, on other databases than the first one that each was
    /// executed on.
    elsewhere: OnceLock<Box<Table>>,
}

/// Who executed a statement that a witness saw.
#[cfg(feature = "witness")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The driver, for a metered connection or for itself.
    #[cfg_attr(not(feature = "sqlx"), expect(dead_code, reason = "there are no metered pools"))]
    MeteredDriver,
    /// A metered pool or its driver, not at the request of the work: in a hook, or to describe a
    /// statement.
    #[cfg_attr(not(feature = "sqlx"), expect(dead_code, reason = "there are no metered pools"))]
    Itself,
    /// It is not known who.
    Anyone,
    /// The driver, for a connection that is not metered.
    Others,
}

#[cfg(feature = "witness")]
impl By {
    /// Whether it was executed on a metered connection.
    pub(crate) fn is_metered(self) -> bool {
        matches!(self, Self::MeteredDriver | Self::Itself)
    }
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
    /// How often it was counted on the first database that it was executed on.
    count: AtomicU64,
    /// The id of that database; 0 while there is none.
    database: AtomicU32,
    /// How often it was counted on others.
    elsewhere: AtomicU32,
    nanos: AtomicU64,
    /// When the wait for the last execution began that is in flight, in nanoseconds after the start
    /// of the work.
    since: AtomicU64,
    /// How many executions are in flight.
    in_flight: AtomicU32,
    /// How many bytes the work had allocated when that wait began.
    allocated_before: AtomicU64,
    /// How many bytes it has allocated during waits that have ended.
    allocated: AtomicU64,
    /// How often a witness has reported it.
    #[cfg(feature = "witness")]
    seen: AtomicU64,
    text: OnceLock<Box<str>>,
    /// Whether the statement writes: undecided at first.
    writes: AtomicU8,
}

/// What is known of one text.
#[derive(Debug)]
pub(crate) struct Counted<'a> {
    /// The text, or its beginning; empty when too much was kept already.
    pub(crate) text: Cow<'a, str>,
    pub(crate) count: u64,
    pub(crate) nanos: u64,
}

impl Table {
    const SIZES: [usize; 5] = [8, 32, 128, 512, 1024];
    /// How many positions of a block a key may have.
    const PROBES: usize = 8;
    /// The most bytes of texts that are kept, in all.
    const MOST_BYTES: usize = 64 << 10;
    /// The most bytes of texts that are kept for the next work.
    const MOST_BYTES_LEFT: usize = 2 << 10;
    /// The most bytes that are kept of one text.
    const LONGEST: usize = 2 << 10;

    /// Resets all counts.
    ///
    /// A few short texts keep their entries for the next work that executes them: nothing has to be
    /// allocated then, and whether they write is known. A text that was not counted since is in no
    /// report.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.head.get_mut().is_some() {
            self.clear_entries();
        }
    }

    fn clear_entries(&mut self) {
        let Some(head) = self.head.get_mut() else { return };
        let Head { first, kept, crowd, elsewhere } = &mut **head;
        let is_small = first.next.get().is_none() && *kept.get_mut() <= Self::MOST_BYTES_LEFT;
        if !is_small || crowd.get().is_some() || elsewhere.get().is_some() {
            return *self = Self::default();
        }
        let taken = first.entries.iter_mut().map(Entry::clear).filter(|is_taken| *is_taken).count();
        // Nearly full: leave room for the texts of the next work.
        if taken > Self::SIZES[0] / 2 {
            *self = Self::default();
        }
    }

    /// Counts one execution of this text. Returns how often it was counted on its database, or a
    /// lower bound.
    pub(crate) fn count(&self, key: Key, text: &str) -> u64 {
        self.take(key, text, u64::MAX).unwrap_or_default()
    }

    /// Counts one execution of this text, unless that would be more than `most` on its database.
    pub(crate) fn take(&self, key: Key, text: &str, most: u64) -> Option<u64> {
        let head = self.head();
        let Some(entry) = head.entry(key) else {
            return head.crowd().take(key.of_both(), text, most);
        };
        entry.text.get_or_init(|| head.keep(text));
        if entry.is_first_on(key.database()) {
            let one_more = |count: u64| (count < most).then(|| count.saturating_add(1));
            let before = entry.count.fetch_update(Relaxed, Relaxed, one_more).ok()?;
            return Some(before.saturating_add(1));
        }
        let count = head.elsewhere().take(key.of_both(), "", most)?;
        entry.elsewhere.fetch_add(1, Relaxed);
        Some(count)
    }

    /// Whether a statement writes; decided once for each text that has an entry.
    pub(crate) fn writes(&self, key: Key, text: &str) -> bool {
        let head = self.head();
        let Some(entry) = head.entry(key) else { return is_write(text) };
        match entry.writes.load(Relaxed) {
            Entry::UNDECIDED => {
                let writes = is_write(text);
                // A statement that is refused is not counted, but the violation names it.
                entry.text.get_or_init(|| head.keep(text));
                entry.writes.store(if writes { Entry::WRITES } else { Entry::READS }, Relaxed);
                writes
            }
            decided => decided == Entry::WRITES,
        }
    }

    /// Uncounts one execution, because the statement is not executed after all.
    pub(crate) fn give_back(&self, key: Key) {
        let head = self.head();
        match self.find(key) {
            Some(entry) if entry.is_first_on(key.database()) => {
                entry.count.fetch_sub(1, Relaxed);
            }
            Some(entry) => {
                entry.elsewhere.fetch_sub(1, Relaxed);
                head.elsewhere().give_back(key.of_both());
            }
            None => head.crowd().give_back(key.of_both()),
        }
    }

    /// How often this text was counted on its database, or a lower bound.
    pub(crate) fn repeated(&self, key: Key) -> u64 {
        match self.find(key) {
            Some(entry) if entry.is_first_on(key.database()) => entry.count.load(Relaxed),
            Some(_) => self.head().elsewhere().repeated(key.of_both()),
            None => self.in_crowd(key).map_or(0, |counted| counted.count),
        }
    }

    /// Notes that a witness has reported an execution. Returns whether that is one more than was
    /// counted.
    ///
    /// Metered connections count before they execute. So if an unmetered execution is reported
    /// before a metered one, the report of the latter is the one too many, and the sum is right all
    /// the same.
    #[cfg(feature = "witness")]
    pub(crate) fn witness(&self, key: Key, text: &str, by: By) -> bool {
        let entry = match by {
            By::Itself => return false,
            // Either it was counted, or the driver executes it for itself.
            By::MeteredDriver => self.find(key),
            By::Anyone | By::Others => self.head().entry(key),
        };
        let Some(entry) = entry else { return by == By::Others };
        let seen = entry.seen.fetch_add(1, Relaxed).saturating_add(1);
        let is_uncounted = match by {
            By::MeteredDriver | By::Itself => false,
            By::Anyone => seen > entry.count(),
            By::Others => true,
        };
        if is_uncounted {
            entry.text.get_or_init(|| self.head().keep(text));
        }
        is_uncounted
    }

    /// Whether this text was counted more often than it was reported.
    #[cfg(feature = "witness")]
    pub(crate) fn has_unseen(&self, key: Key) -> bool {
        self.find(key).is_some_and(|entry| entry.count() > entry.seen.load(Relaxed))
    }

    /// Whether this text was reported more often than it was counted.
    #[cfg(feature = "witness")]
    pub(crate) fn is_overdue(&self, key: Key) -> bool {
        self.find(key).is_some_and(|entry| entry.seen.load(Relaxed) > entry.count())
    }

    /// Every text that was reported more often than it was counted, and how often more.
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
        } else if let Some(crowd) = self.crowd() {
            crowd.add_time(key.of_both(), nanos);
        }
    }

    /// Notes that the wait for one execution of a text begins. The text was counted before;
    /// `allocated` is how many bytes the work has allocated so far.
    ///
    /// Does nothing for a text without an entry.
    pub(crate) fn begin_wait(&self, key: Key, now: u64, allocated: u64) {
        if let Some(entry) = self.find(key) {
            entry.since.store(now, Relaxed);
            entry.allocated_before.store(allocated, Relaxed);
            entry.in_flight.fetch_add(1, Relaxed);
        }
    }

    /// Notes that a wait that has [begun](Self::begin_wait) ends.
    ///
    /// If there are several at once, allocations count from the beginning of the last.
    pub(crate) fn end_wait(&self, key: Key, allocated: u64) {
        if let Some(entry) = self.find(key) {
            entry.in_flight.fetch_sub(1, Relaxed);
            let meanwhile = allocated.saturating_sub(entry.allocated_before.load(Relaxed));
            // Most waits allocate nothing, and a comparison is cheaper.
            if meanwhile > 0 {
                entry.allocated.fetch_add(meanwhile, Relaxed);
            }
        }
    }

    /// The text that took most of the time, and how much, including what is in flight.
    pub(crate) fn slowest(&self, now: u64) -> Option<(&Entry, u64)> {
        let time =
            |entry: &Entry| entry.nanos().saturating_add(entry.waiting(now).unwrap_or_default());
        let waited = self.entries().map(|entry| (entry, time(entry)));
        waited.max_by_key(|(entry, time)| (*time, entry.rank()))
    }

    /// How many of `total` bytes were allocated during the waits for each text.
    pub(crate) fn allocations(&self, total: u64) -> impl Iterator<Item = (&Entry, u64)> {
        self.entries().map(move |entry| (entry, entry.allocated(total)))
    }

    /// The text that has been in flight for longest, and since when.
    #[cfg(feature = "http")]
    pub(crate) fn longest_in_flight(&self) -> Option<(Key, u64)> {
        let in_flight = self.entries().filter(|entry| entry.in_flight.load(Relaxed) > 0);
        let since = in_flight.map(|entry| (entry.key.load(Relaxed), entry.since.load(Relaxed)));
        since.min_by_key(|(_, since)| *since).map(|(key, since)| (Key::from_raw(key), since))
    }

    /// The entry of a text that was counted before.
    #[cfg(any(feature = "http", feature = "mongodb"))]
    pub(crate) fn get(&self, key: Key) -> Option<&Entry> {
        self.find(key)
    }

    /// What is known of a text that was counted before.
    pub(crate) fn counted(&self, key: Key) -> Option<Counted<'_>> {
        self.find(key).map(Entry::counted).or_else(|| self.in_crowd(key))
    }

    /// The text that was counted most often of all executions; `None` if it may be one that is not
    /// distinguished.
    pub(crate) fn most(&self, of_all: u64) -> Option<Counted<'_>> {
        let told = self.entries().map(Entry::count).sum::<u64>();
        let in_crowd = self.crowd().map_or(0, Crowd::total);
        let of_no_text = of_all.saturating_sub(told).saturating_sub(in_crowd);
        let (most_in_crowd, others_at_most) = self.crowd().and_then(Crowd::most).unzip();
        let most = self.entries().max_by_key(|entry| (entry.count(), entry.rank()));
        let all = most.map(Entry::counted).into_iter().chain(most_in_crowd);
        let most = all.max_by_key(|counted| counted.count)?;
        let another = of_no_text.saturating_add(others_at_most.unwrap_or_default());
        (most.count > another).then_some(most)
    }

    /// Every text that has an entry, then the repeated ones of those that have none, as they are at
    /// the first call.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let crowd = self.crowd().into_iter().flat_map(|crowd| &*crowd.settled().entries);
        self.entries().chain(crowd)
    }

    /// How many executions [`iter`](Self::iter) leaves out.
    pub(crate) fn left_out(&self) -> u64 {
        self.crowd().map_or(0, |crowd| crowd.settled().left_out)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let taken = |entry: &&Entry| entry.count() > 0;
        self.blocks().flat_map(|block| &*block.entries).filter(taken)
    }

    #[inline]
    fn find(&self, key: Key) -> Option<&Entry> {
        let first = self.head.get()?.first.probe(key).next();
        first.filter(|entry| entry.is_of(key)).or_else(|| self.find_further(key))
    }

    #[inline(never)]
    fn find_further(&self, key: Key) -> Option<&Entry> {
        self.blocks().find_map(|block| block.probe(key).find(|entry| entry.is_of(key)))
    }

    fn crowd(&self) -> Option<&Crowd> {
        self.head.get()?.crowd.get().map(|crowd| &**crowd)
    }

    fn in_crowd(&self, key: Key) -> Option<Counted<'static>> {
        self.crowd()?.find(key.of_both())
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        let first = self.head.get().map(|head| &head.first);
        iter::successors(first, |block| block.next.get().map(|next| &**next))
    }

    fn head(&self) -> &Head {
        self.head.get_or_init(|| {
            memory::aside(|| {
                Box::new(Head {
                    first: Block::new(Self::SIZES[0]),
                    kept: AtomicUsize::new(0),
                    crowd: OnceLock::new(),
                    elsewhere: OnceLock::new(),
                })
            })
        })
    }

    /// The beginning of a text, as long as is kept of it.
    fn beginning(text: &str) -> &str {
        &text[..text.floor_char_boundary(Self::LONGEST)]
    }
}

impl Head {
    fn crowd(&self) -> &Crowd {
        self.crowd.get_or_init(|| memory::aside(|| Box::new(Crowd::new())))
    }

    fn elsewhere(&self) -> &Table {
        self.elsewhere.get_or_init(|| memory::aside(Box::default))
    }

    /// The entry of this key. Takes a free one if there is none.
    ///
    /// All threads probe the same positions in the same order and an entry is never released, so no
    /// key gets two.
    fn entry(&self, key: Key) -> Option<&Entry> {
        let mut block = &self.first;
        let mut sizes = Table::SIZES[1..].iter();
        loop {
            for entry in block.probe(key) {
                // Mostly it exists, and a load is cheaper than a compare-exchange.
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
        let text = Table::beginning(text);
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
            // Allocated at nobody's charge, so freed likewise.
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
    const UNDECIDED: u8 = 0;
    const READS: u8 = 1;
    const WRITES: u8 = 2;

    /// Resets the counts. Returns whether the entry is taken.
    fn clear(&mut self) -> bool {
        let Self {
            key,
            count,
            database,
            elsewhere,
            nanos,
            since,
            in_flight,
            allocated_before,
            allocated,
            #[cfg(feature = "witness")]
            seen,
            // Facts about the text, which stay.
            text: _,
            writes: _,
        } = self;
        let is_taken = *key.get_mut() != 0;
        if is_taken {
            *count.get_mut() = 0;
            *database.get_mut() = 0;
            *elsewhere.get_mut() = 0;
            *nanos.get_mut() = 0;
            *since.get_mut() = 0;
            *in_flight.get_mut() = 0;
            *allocated_before.get_mut() = 0;
            *allocated.get_mut() = 0;
            #[cfg(feature = "witness")]
            {
                *seen.get_mut() = 0;
            }
        }
        is_taken
    }

    #[inline]
    pub(crate) fn is_of(&self, key: Key) -> bool {
        self.key.load(Relaxed) == key.raw()
    }

    /// How often it was counted on all databases.
    pub(crate) fn count(&self) -> u64 {
        let elsewhere = u64::from(self.elsewhere.load(Relaxed));
        self.count.load(Relaxed).saturating_add(elsewhere)
    }

    /// Whether this is the first database that it was executed on. Makes it the first, if there was
    /// none.
    fn is_first_on(&self, database: DatabaseId) -> bool {
        let first = self.database.load(Relaxed);
        let made = || self.database.compare_exchange(0, database.raw(), Relaxed, Relaxed);
        first == database.raw()
            || (first == 0 && made().map_or_else(|other| other == database.raw(), |_| true))
    }

    /// Breaks ties independently of the positions of entries, which may depend on earlier work.
    fn rank(&self) -> u64 {
        self.key.load(Relaxed)
    }

    /// How long the wait for the last execution in flight has lasted.
    pub(crate) fn waiting(&self, now: u64) -> Option<u64> {
        let is_in_flight = self.in_flight.load(Relaxed) > 0;
        is_in_flight.then(|| now.saturating_sub(self.since.load(Relaxed)))
    }

    fn allocated(&self, total: u64) -> u64 {
        let before = self.allocated.load(Relaxed);
        match self.in_flight.load(Relaxed) {
            0 => before,
            _ => before.saturating_add(total.saturating_sub(self.allocated_before.load(Relaxed))),
        }
    }

    fn counted(&self) -> Counted<'_> {
        Counted { text: self.text().into(), count: self.count(), nanos: self.nanos() }
    }

    /// An entry that does not change any more.
    fn settled(key: Key, count: u64, nanos: u64, text: Box<str>) -> Self {
        Self {
            key: key.raw().into(),
            count: count.into(),
            nanos: nanos.into(),
            text: text.into(),
            ..Self::default()
        }
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
mod tests;
