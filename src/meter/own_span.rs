//! The span by which a unit of work is recognised on the threads of drivers.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::Span;

use super::Meter;
use super::flags::Flags;
use crate::memory;

/// Registers each new account with the `tracing` layer that attributes statements to accounts.
///
/// Set by that layer, so that this module does not depend on it.
static ADOPT: OnceLock<fn(&Arc<Meter>)> = OnceLock::new();

/// Has this function called for each new account. Only the first function that is set counts.
pub(crate) fn adopt_by(adopt: fn(&Arc<Meter>)) {
    ADOPT.get_or_init(|| adopt);
}

/// Whether a function is called for each new account.
#[cfg(feature = "sqlx")]
pub(crate) fn is_adopted() -> bool {
    ADOPT.get().is_some()
}

/// Only used if such a layer is installed.
#[derive(Debug, Default)]
pub(super) struct OwnSpans {
    own: OnceLock<Span>,
    /// The span of its metered connections, a child of the other.
    #[cfg(feature = "sqlx")]
    metered: OnceLock<Option<Span>>,
    /// How many threads are in one of these spans without running the work: those of drivers.
    elsewhere: AtomicUsize,
}

impl Meter {
    /// Registers a new account with the layer that attributes statements by spans, if there is one.
    #[inline]
    pub(crate) fn adopt(self: &Arc<Self>) {
        if let Some(adopt) = ADOPT.get() {
            memory::aside(|| adopt(self));
        }
    }

    /// Sets the span in which the work is to run.
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

    /// Allows the threads of drivers to charge the work, and so to cut it while it waits.
    pub(crate) fn share_with_drivers(&self) {
        if self.flags.any(Flags::SPAN) {
            self.share();
        }
    }

    /// Notes that a driver's thread has entered the span of this work.
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

    /// Waits for drivers' threads that are about to report a statement.
    ///
    /// Such a thread sends the result of a statement some microseconds before it emits the event.
    /// The wait is bounded, since the thread may still execute a statement whose result was given
    /// up.
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
