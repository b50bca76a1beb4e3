//! The span of its own by which work is known on the threads of drivers.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::Span;

use super::Meter;
use super::flags::Flags;
use crate::memory;

/// What makes each new account known to a layer of `tracing` that attributes statements to it.
///
/// Set by that layer, of which the meter knows nothing.
static ADOPT: OnceLock<fn(&Arc<Meter>)> = OnceLock::new();

/// Calls this for each account from now on; the first such function stays for good.
pub(crate) fn adopt_by(adopt: fn(&Arc<Meter>)) {
    ADOPT.get_or_init(|| adopt);
}

/// Whether anything is called for each account.
#[cfg(feature = "sqlx")]
pub(crate) fn is_adopted() -> bool {
    ADOPT.get().is_some()
}

/// Made only while a layer asks for it.
#[derive(Debug, Default)]
pub(super) struct OwnSpans {
    own: OnceLock<Span>,
    /// That of its metered connections, inside the other.
    #[cfg(feature = "sqlx")]
    metered: OnceLock<Option<Span>>,
    /// How many threads that run none of the work are in one of these spans.
    elsewhere: AtomicUsize,
}

impl Meter {
    /// Makes a new account known to the layer that attributes statements by spans, if the process has one.
    #[inline]
    pub(crate) fn adopt(self: &Arc<Self>) {
        if let Some(adopt) = ADOPT.get() {
            memory::aside(|| adopt(self));
        }
    }

    /// Lets the work run in this span, which is its own.
    pub(crate) fn run_in(&self, span: Span) {
        self.rare().spans.own.get_or_init(|| span);
        self.flags.set(Flags::SPAN);
    }

    fn own_spans(&self) -> Option<&OwnSpans> {
        self.flags.any(Flags::SPAN).then(|| &self.rare().spans)
    }

    pub(crate) fn own_span(&self) -> Option<&Span> {
        self.own_spans()?.own.get()
    }

    /// The span of its metered connections, made when it is needed first.
    #[cfg(feature = "sqlx")]
    pub(crate) fn metered_span(&self, make: impl FnOnce(&Span) -> Option<Span>) -> Option<Span> {
        let spans = self.own_spans()?;
        let own = spans.own.get()?;
        spans.metered.get_or_init(|| make(own)).clone()
    }

    /// Lets the threads of drivers charge the work, and so cut it while it waits.
    pub(crate) fn share_with_drivers(&self) {
        if self.flags.any(Flags::SPAN) {
            self.share();
        }
    }

    /// Notes that a thread works for this work in its span.
    pub(crate) fn enter_elsewhere(&self) {
        for meter in self.chain() {
            if let Some(spans) = meter.own_spans() {
                spans.elsewhere.fetch_add(1, SeqCst);
            }
        }
    }

    pub(crate) fn exit_elsewhere(&self) {
        for meter in self.chain() {
            if let Some(spans) = meter.own_spans() {
                spans.elsewhere.fetch_sub(1, SeqCst);
            }
        }
    }

    /// Waits for threads of drivers that are about to report a statement.
    ///
    /// The result of a statement comes before its event, by some microseconds. A thread that still
    /// executes one, which nobody waits for any more, is not waited for longer than this.
    #[expect(clippy::disallowed_types, reason = "a paused clock stands still while this waits")]
    pub(crate) fn wait_for_drivers(&self) {
        const PATIENCE: Duration = Duration::from_millis(2);
        let Some(spans) = self.own_spans() else { return };
        if spans.elsewhere.load(SeqCst) == 0 {
            return;
        }
        let since = std::time::Instant::now();
        while spans.elsewhere.load(SeqCst) > 0 && since.elapsed() < PATIENCE {
            thread::yield_now();
        }
    }
}
