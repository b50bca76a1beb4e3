//! Hard limits that are looked at in the middle of a piece of work, because it asks.

use std::sync::atomic::Ordering::Relaxed;

use super::{Meter, Suspect};
use crate::error::Cut;
use crate::memory::Delta;
use crate::resource::Resource;
use crate::time::Instant;

impl Meter {
    /// The hard limit, of this work or of one that it runs inside, that ends it here, with this much
    /// memory not charged yet.
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
                meter.time_is_up();
            }
            if let Some(cut) = meter.cut() {
                // It was told to stop: what it returns was made without the rest.
                meter.refused.store(true, Relaxed);
                return Err(cut.clone());
            }
        }
        Ok(())
    }
}
