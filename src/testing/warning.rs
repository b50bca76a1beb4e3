//! Warnings to a test that do not fail it.

use std::fmt;
use std::io::{Write, stderr};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

/// Writes a warning to standard error directly, because the test harness discards the captured
/// output of a test that passes.
pub(super) fn emit(warning: &str) {
    // If standard error is closed, the warning is lost.
    writeln!(stderr().lock(), "request-budget: warning: {warning}").unwrap_or_default();
}

/// Warns, when its last clone is dropped, if nothing has read or asserted on what was measured.
#[derive(Clone)]
pub(super) struct Judged(Arc<Inner>);

struct Inner {
    measured_at: &'static Location<'static>,
    is_judged: AtomicBool,
}

impl Judged {
    /// Not yet.
    pub(super) fn later(measured_at: &'static Location<'static>) -> Self {
        Self(Arc::new(Inner { measured_at, is_judged: AtomicBool::new(false) }))
    }

    /// Where the work was measured.
    pub(super) fn measured_at(&self) -> &'static Location<'static> {
        self.0.measured_at
    }

    /// Notes that the measurement was read.
    pub(super) fn now(&self) {
        self.0.is_judged.store(true, Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A test that is failing anyway needs no warning.
        if !*self.is_judged.get_mut() && !thread::panicking() {
            emit(&format!(
                "nothing was asserted on what was measured at {}, and its usage was not looked at: \
                 `record.assert_within(budget)`, `record.assert_queries(n)`",
                self.measured_at
            ));
        }
    }
}

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Printing a record counts as reading it.
        self.now();
        self.measured_at().fmt(f)
    }
}
