//! Checks of hard limits in the middle of a poll, at the request of the work.

use std::sync::atomic::Ordering::Relaxed;

use super::{Meter, Suspect};
use crate::error::Cut;
use crate::memory::Delta;
use crate::resource::Resource;
use crate::time::Instant;

impl Meter {
    /// Returns the error of a crossed hard limit of this work or an outer one. `pending` is memory
    /// that is not charged yet.
    pub(crate) fn checkpoint(&self, pending: Delta) -> Result<(), Cut> {
        if pending.allocated > 0 {
            let allocated = self.used(Resource::Allocated).saturating_add(pending.allocated);
            self.check(Resource::Allocated, allocated, Suspect::Memory(allocated));
            let peak = self.live.load(Relaxed).saturating_add(pending.peak);
            self.raise(Resource::Memory, peak, Suspect::Memory(allocated));
        }
        let now = Instant::now();
        for meter in self.chain() {
            if meter.cut().is_none() && meter.deadline().is_some_and(|deadline| now >= deadline) {
                meter.cut_at_deadline();
            }
            if let Some(cut) = meter.cut() {
                // The work is asked to stop here, so what it returns may be incomplete.
                meter.refused.store(true, Relaxed);
                return Err(cut.clone());
            }
        }
        Ok(())
    }
}
