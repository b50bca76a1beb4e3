//! Recording, with the feature `testing`.

use std::cell::Cell;
use std::fmt;
#[cfg(feature = "http")]
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tracing::dispatcher::{DefaultGuard, set_default};
use tracing::{Dispatch, Span};

use super::super::Meter;
#[cfg(feature = "http")]
use super::super::flags::Flags;
use super::Kind;
use super::spawns::{Existing, OnBehalf, Spawned, Whereabouts};
use super::waits::{self, Woken};
use crate::key::DatabaseId;
use crate::memory;
use crate::time::nanos;

thread_local! {
    static ASKS: Cell<bool> = const { Cell::new(false) };
}

/// True while this crate calls `Span::current()` on this thread.
pub(crate) fn asks_for_span() -> bool {
    ASKS.get()
}

/// The current span, requested by this crate.
pub(crate) fn current_span() -> Span {
    if !is_live() {
        return Span::current();
    }
    let before = ASKS.replace(true);
    let span = Span::current();
    ASKS.set(before);
    span
}

/// The number of recordings in this process.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Whether anything in the process is being recorded.
#[inline]
pub(crate) fn is_live() -> bool {
    LIVE.load(Relaxed) > 0
}

/// The recordings of this process that were started in a runtime.
static RUNNING: Mutex<Vec<Weak<Recording>>> = Mutex::new(Vec::new());

fn lock_running() -> MutexGuard<'static, Vec<Weak<Recording>>> {
    // No access panics midway, so a poisoned list is whole.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The recordings that are running. The lock is released by then: dropping a recording takes it.
pub(super) fn running() -> Vec<Arc<Recording>> {
    lock_running().iter().filter_map(Weak::upgrade).collect()
}

/// A statement that ran in no recorded work.
#[derive(Debug, Clone)]
pub(crate) struct Stray {
    pub(crate) entry: Arc<Entry>,
    pub(crate) ran: Arc<Whereabouts>,
    /// In the runtime of the recording; else in none, or another, while the recorded work was
    /// polled.
    pub(crate) is_in_runtime: bool,
}

/// Everything that a unit of work does, one entry for each operation.
#[derive(Debug)]
pub(crate) struct Recording {
    entries: Mutex<Vec<Arc<Entry>>>,
    runtime: Option<runtime::Id>,
    existing: Existing,
    spawned: Mutex<Spawned>,
    /// Statements that are part of no recorded work.
    strays: Mutex<Vec<Stray>>,
    /// Futures and closures that are carried along, and not over yet.
    carried: AtomicUsize,
    /// How many tasks the runtime had when it was started.
    alive: Option<usize>,
    /// How many polls of the recorded work are in progress.
    pub(super) polls: AtomicUsize,
    /// The number of the first statement in no work that began or ended since it was started.
    pub(super) first_last: u64,
    /// Who has woken the recorded work, while nothing that is counted was in flight.
    wakes: Mutex<Vec<Woken>>,
    /// The subscriber while the recorded work runs.
    subscriber: OnceLock<Dispatch>,
    /// Whether the default subscriber of a thread is one of a recording.
    is_in_place: OnceLock<fn() -> bool>,
    /// The recorded work has put another default subscriber in its place.
    is_masked: AtomicBool,
    /// Responses with a streamed body that is not read to its end yet.
    unread: AtomicUsize,
    /// Where the work was when it held the most memory.
    peak: Mutex<Option<Site>>,
}

impl Recording {
    pub(crate) fn start() -> Arc<Self> {
        LIVE.fetch_add(1, Relaxed);
        let recording = Arc::new(Self {
            entries: Mutex::default(),
            runtime: Handle::try_current().ok().map(|here| here.id()),
            existing: memory::aside(Existing::now),
            spawned: Mutex::default(),
            strays: Mutex::default(),
            carried: AtomicUsize::new(0),
            alive: alive_tasks(),
            polls: AtomicUsize::new(0),
            first_last: waits::next_last(),
            wakes: Mutex::default(),
            subscriber: OnceLock::new(),
            is_in_place: OnceLock::new(),
            is_masked: AtomicBool::new(false),
            unread: AtomicUsize::new(0),
            peak: Mutex::default(),
        });
        if recording.runtime.is_some() {
            lock_running().push(Arc::downgrade(&recording));
        }
        recording
    }

    /// Makes this the default subscriber wherever the recorded work runs.
    pub(crate) fn subscribe(&self, subscriber: Dispatch, is_in_place: fn() -> bool) {
        self.subscriber.get_or_init(|| subscriber);
        self.is_in_place.get_or_init(|| is_in_place);
    }

    /// Notes that the recorded work has put another default subscriber in the place of this one's.
    pub(crate) fn note_mask(&self) {
        self.is_masked.store(true, Relaxed);
    }

    /// Checks whether it has done so on this thread.
    fn look_for_mask(&self) {
        if self.is_in_place.get().is_some_and(|is_in_place| !is_in_place()) {
            self.note_mask();
        }
    }

    /// Whether the recorded work has put another default subscriber in the place of this one's.
    pub(crate) fn is_masked(&self) -> bool {
        self.is_masked.load(Relaxed)
    }

    /// How many responses with a streamed body were not read to its end.
    pub(crate) fn unread(&self) -> usize {
        self.unread.load(Relaxed)
    }

    pub(crate) fn push(&self, entry: Arc<Entry>) {
        // No access panics midway, so a poisoned list is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Takes back the latest entry of a statement that nothing had counted, since it is counted
    /// now.
    pub(crate) fn forget_unmetered(&self, text: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |entry: &Arc<Entry>| entry.kind == Kind::Unmetered && entry.text() == Some(text);
        if let Some(position) = entries.iter().rposition(is_it) {
            entries.remove(position);
        }
    }

    /// Adds rows to the latest entry of a statement that was counted after the fact and has none.
    pub(crate) fn add_rows(&self, text: &str, rows: u64) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |entry: &&Arc<Entry>| {
            entry.kind == Kind::Observed && entry.text() == Some(text) && entry.rows() == 0
        };
        if let Some(entry) = entries.iter().rev().find(is_it) {
            entry.rows.fetch_add(rows, Relaxed);
        }
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The statements that ran meanwhile in no recorded work.
    pub(crate) fn strays(&self) -> Vec<Stray> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The runtime in which it was started.
    pub(super) fn runtime(&self) -> Option<runtime::Id> {
        self.runtime
    }

    /// The tasks and threads that are older than this recording.
    pub(crate) fn existing(&self) -> &Existing {
        &self.existing
    }

    /// The tasks that were spawned since.
    pub(crate) fn spawned(&self) -> MutexGuard<'_, Spawned> {
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the runtime has more tasks than when it was started.
    pub(crate) fn has_more_tasks(&self) -> bool {
        alive_tasks() > self.alive
    }

    /// Whether a statement or call of the recorded work is in flight.
    pub(super) fn has_open_entries(&self) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().rev().any(|entry| entry.is_open.load(Relaxed))
    }

    pub(super) fn lock_wakes(&self) -> MutexGuard<'_, Vec<Woken>> {
        // No access panics midway, so a poisoned list is whole.
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many futures and closures that are carried along are not over yet.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Relaxed)
    }

    /// Where the most memory was held.
    pub(crate) fn peak(&self) -> Option<Site> {
        self.peak.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many tasks the runtime has that is running here.
fn alive_tasks() -> Option<usize> {
    Handle::try_current().ok().map(|here| here.metrics().num_alive_tasks())
}

impl Drop for Recording {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Relaxed);
        lock_running().retain(|recording| recording.strong_count() > 0);
    }
}

/// A future or closure that is carried along, until dropped; nothing unless the work is recorded.
#[derive(Debug, Default)]
pub(crate) struct Carry(Vec<Arc<Recording>>);

impl Carry {
    pub(crate) fn of(meter: Option<&Meter>) -> Self {
        let Some(meter) = meter.filter(|_| is_live()) else { return Self::default() };
        let recordings = memory::aside(|| meter.recordings().collect::<Vec<_>>());
        for recording in &recordings {
            recording.carried.fetch_add(1, Relaxed);
        }
        Self(recordings)
    }
}

impl Drop for Carry {
    fn drop(&mut self) {
        for recording in &self.0 {
            recording.carried.fetch_sub(1, Relaxed);
        }
        if !self.0.is_empty() {
            memory::aside(|| self.0 = Vec::new());
        }
    }
}

/// The streamed body of a response of recorded work, until it was read; nothing unless that is
/// recorded.
#[cfg(feature = "http")]
#[derive(Debug, Default)]
pub(crate) struct Unread(Vec<Arc<Recording>>);

#[cfg(feature = "http")]
impl Unread {
    pub(crate) fn of(meter: Option<&Meter>) -> Self {
        let Some(meter) = meter.filter(|_| is_live()) else { return Self::default() };
        let recordings = memory::aside(|| meter.recordings().collect::<Vec<_>>());
        for recording in &recordings {
            recording.unread.fetch_add(1, Relaxed);
        }
        Self(recordings)
    }

    /// Notes that it was read, to its end or until it failed.
    pub(crate) fn end(&mut self) {
        if !self.0.is_empty() {
            for recording in memory::aside(|| mem::take(&mut self.0)) {
                recording.unread.fetch_sub(1, Relaxed);
            }
        }
    }
}

/// Notes a statement that is part of no work at all with what is recorded in the same runtime: it
/// may have been meant to be part of that.
pub(crate) fn record_elsewhere(kind: Kind, text: Option<&str>) -> Recorded {
    if is_live() { record_stray(kind, text, None) } else { Recorded::default() }
}

fn record_stray(kind: Kind, text: Option<&str>, unit: Option<&Meter>) -> Recorded {
    if is_unrelated() {
        return Recorded::default();
    }
    memory::aside(|| {
        let recordings = running();
        if recordings.is_empty() {
            return Recorded::default();
        }
        let here = Handle::try_current().ok().map(|here| here.id());
        let entry = Entry::new(kind, text, Site::capture());
        let is_in_request = unit.is_some_and(|unit| unit.chain().any(|unit| unit.is_request()));
        let ran = Arc::new(Whereabouts { is_in_request, ..Whereabouts::here(unit.is_some()) });
        for recording in recordings {
            let is_in_runtime = here.is_some() && recording.runtime == here;
            if is_in_runtime || recording.is_polled() {
                let (entry, ran) = (entry.clone(), ran.clone());
                let mut strays = recording.strays.lock().unwrap_or_else(PoisonError::into_inner);
                strays.push(Stray { entry, ran, is_in_runtime });
            }
        }
        // A unit of work of its own is separate on purpose, even if the recorded work waits for it.
        if unit.is_none() {
            entry.is_stray.store(true, Relaxed);
            waits::note_last(&entry);
        }
        Recorded(Some(entry))
    })
}

thread_local! {
    static IS_UNRELATED: Cell<bool> = const { Cell::new(false) };
}

/// Whether what runs here was declared to be unrelated to what is recorded.
fn is_unrelated() -> bool {
    IS_UNRELATED.get()
}

/// Runs what is declared to be unrelated to what is recorded.
pub(crate) fn unrelated<T>(piece: impl FnOnce() -> T) -> T {
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            IS_UNRELATED.set(self.0);
        }
    }

    let _restore = Restore(IS_UNRELATED.replace(true));
    let _on_behalf = if is_live() { OnBehalf::of_unrelated() } else { None };
    piece()
}

/// One thing that was done.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Empty at first if the driver reports it later.
    text: OnceLock<Box<str>>,
    pub(crate) site: Site,
    /// On which database, if any is known.
    database: AtomicU32,
    times: AtomicU64,
    rows: AtomicU64,
    nanos: AtomicU64,
    /// It is in flight.
    is_open: AtomicBool,
    /// It is part of no work.
    is_stray: AtomicBool,
}

impl Entry {
    pub(crate) fn new(kind: Kind, text: Option<&str>, site: Site) -> Arc<Self> {
        let text = text.map_or_else(OnceLock::new, |text| OnceLock::from(Box::from(text)));
        let [rows, nanos] = [const { AtomicU64::new(0) }; 2];
        let (database, times) = (AtomicU32::new(0), AtomicU64::new(1));
        let [is_open, is_stray] = [const { AtomicBool::new(false) }; 2];
        Arc::new(Self { kind, text, site, database, times, rows, nanos, is_open, is_stray })
    }

    pub(crate) fn text(&self) -> Option<&str> {
        self.text.get().map(|text| &**text)
    }

    pub(crate) fn database(&self) -> u32 {
        self.database.load(Relaxed)
    }

    pub(crate) fn times(&self) -> u64 {
        self.times.load(Relaxed)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Relaxed)
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Relaxed))
    }
}

/// Where in the program something was done: the instructions on the stack, not looked up yet.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Site(pub(crate) Arc<[usize]>);

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({} frames)", self.0.len())
    }
}

impl Site {
    /// Deeper stacks than this are those of the runtime.
    const MOST_FRAMES: usize = 256;

    pub(crate) fn capture() -> Self {
        let mut frames = Vec::with_capacity(64);
        backtrace::trace(|frame| {
            frames.push(frame.ip() as usize);
            frames.len() < Self::MOST_FRAMES
        });
        Self(frames.into())
    }
}

/// The entry of something that is being done; nothing unless it is recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorded(Option<Arc<Entry>>);

impl Recorded {
    #[cfg(feature = "mongodb")]
    pub(crate) fn set_text(&self, text: &str) {
        if let Some(entry) = &self.0 {
            memory::aside(|| entry.text.get_or_init(|| text.into()));
        }
    }

    /// Notes that it is in flight, until its time is added.
    pub(crate) fn open(&self) {
        if let Some(entry) = &self.0 {
            entry.is_open.store(true, Relaxed);
        }
    }

    /// Notes on which database it is executed.
    pub(crate) fn set_database(&self, database: DatabaseId) {
        if let Some(entry) = &self.0 {
            entry.database.store(database.raw(), Relaxed);
        }
    }

    pub(crate) fn add_rows(&self, rows: u64) {
        if let Some(entry) = &self.0 {
            entry.rows.fetch_add(rows, Relaxed);
        }
    }

    pub(crate) fn add_time(&self, time: Duration) {
        if let Some(entry) = &self.0 {
            entry.nanos.fetch_add(nanos(time), Relaxed);
            entry.is_open.store(false, Relaxed);
            if entry.is_stray.load(Relaxed) {
                waits::note_last(entry);
            }
        }
    }

    /// One more of the same.
    #[cfg(feature = "sqlx")]
    pub(crate) fn add_one(&self) {
        if let Some(entry) = &self.0 {
            entry.times.fetch_add(1, Relaxed);
        }
    }
}

impl Meter {
    /// Records all that this work does.
    pub(crate) fn recorded_by(mut self, recording: Arc<Recording>) -> Self {
        self.recording = Some(recording);
        self
    }

    pub(crate) fn recording(&self) -> Option<&Arc<Recording>> {
        self.recording.as_ref()
    }

    pub(crate) fn recordings(&self) -> impl Iterator<Item = Arc<Recording>> {
        self.chain().filter_map(|meter| meter.recording().cloned())
    }

    /// Notes something that is done here and now, wherever it is recorded.
    #[inline]
    pub(crate) fn record(&self, kind: Kind, text: Option<&str>) -> Recorded {
        if !is_live() {
            return Recorded::default();
        }
        if kind.is_statement() && self.is_elsewhere() {
            return record_stray(kind, text, Some(self));
        }
        self.recordings().for_each(|recording| recording.look_for_mask());
        memory::aside(|| self.record_in_all(kind, text, Site::capture))
    }

    /// Marks the account as that of an HTTP request. Stacks cannot show that once functions are
    /// inlined.
    #[cfg(feature = "http")]
    pub(crate) fn mark_as_request(&self) {
        self.flags.set(Flags::REQUEST);
    }

    /// Whether it is the account of an HTTP request.
    fn is_request(&self) -> bool {
        #[cfg(feature = "http")]
        return self.flags.any(Flags::REQUEST);
        #[cfg(not(feature = "http"))]
        false
    }

    /// Whether it is in no recording, and was not begun by recorded work as separate work.
    fn is_elsewhere(&self) -> bool {
        !self.is_outermost_begun() && self.recordings().next().is_none()
    }

    /// Notes something that was done elsewhere.
    pub(crate) fn record_in_all(
        &self,
        kind: Kind,
        text: Option<&str>,
        site: impl FnOnce() -> Site,
    ) -> Recorded {
        let mut recordings = self.recordings().peekable();
        if recordings.peek().is_none() {
            return Recorded::default();
        }
        let entry = Entry::new(kind, text, site());
        recordings.for_each(|recording| recording.push(entry.clone()));
        Recorded(Some(entry))
    }

    /// Notes that the work holds more memory than ever before, and where it is.
    pub(crate) fn record_peak(&self) {
        let Some(recording) = &self.recording else { return };
        memory::aside(|| {
            if let Some(site) = memory::peak_site() {
                let mut peak = recording.peak.lock().unwrap_or_else(PoisonError::into_inner);
                *peak = Some(Site(site.into()));
            }
        });
    }
}

/// The subscriber of a recording, and the watch on memory, while the recorded work runs on this
/// thread.
#[derive(Debug, Default)]
pub(crate) struct Subscribed {
    // First, so that what the subscriber spawns when it is dropped is not the work's.
    _on_behalf: Option<OnBehalf>,
    _subscriber: Option<DefaultGuard>,
    watches: bool,
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        if self.watches {
            memory::unwatch();
        }
    }
}

impl Subscribed {
    /// Called before the work is entered. What runs here already is left as it is: the work may
    /// have put a subscriber of its own in the place of ours.
    pub(crate) fn new(entering: &Meter, current: impl Fn() -> Option<Arc<Meter>>) -> Self {
        if is_live() { Self::of(entering, current().as_deref()) } else { Self::default() }
    }

    fn of(entering: &Meter, current: Option<&Meter>) -> Self {
        let runs_here = |recording: &Arc<Recording>| {
            current.is_some_and(|meter| meter.recordings().any(|r| Arc::ptr_eq(&r, recording)))
        };
        entering.recordings().filter(runs_here).for_each(|recording| recording.look_for_mask());
        let innermost =
            entering.recordings().find(|recording| recording.subscriber.get().is_some());
        let new = innermost.filter(|recording| !runs_here(recording));
        let subscriber = new.as_ref().and_then(|recording| recording.subscriber.get());
        Self {
            _subscriber: memory::aside(|| subscriber.map(set_default)),
            watches: new.is_some() && memory::watch(),
            _on_behalf: OnBehalf::of(entering),
        }
    }
}
