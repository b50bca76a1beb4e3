//! One round trip to a cache.

use std::sync::Arc;

use crate::deadline::Refusal;
use crate::error::Cut;
use crate::memory;
use crate::meter::Meter;
use crate::meter::recording::{Kind, Recorded};
use crate::meter::table::Key;
use crate::scope;
use crate::time::Instant;

/// One round trip to a cache, until dropped.
///
/// It is charged to the unit of work that is running when it begins, and to all that enclose that
/// one; outside of all units of work it is not counted.
pub(crate) struct CacheCall(Option<Begun>);

struct Begun {
    meter: Arc<Meter>,
    key: Key,
    since: Instant,
    recorded: Recorded,
}

impl CacheCall {
    /// Counts a round trip and starts its clock. The command must contain no values.
    ///
    /// # Errors
    ///
    /// Refuses a call that would cross a hard limit, and every call after such a crossing. Before a
    /// refusal the future returns `Pending` once and wakes its task.
    pub(crate) async fn begin(command: impl Fn() -> String) -> Result<Self, Cut> {
        match Self::start(command) {
            Ok(call) => Ok(call),
            Err(cut) => Err(Refusal::new(cut).await),
        }
    }

    fn start(command: impl Fn() -> String) -> Result<Self, Cut> {
        let Some(meter) = scope::current() else { return Ok(Self(None)) };
        let command = memory::aside(command);
        let key = Key::of(&command);
        let taken = meter.take_cache_call(key, &command);
        let recorded = match &taken {
            Ok(()) => meter.record(Kind::CacheCall, Some(&command)),
            Err(_) => Recorded::default(),
        };
        memory::aside(|| drop(command));
        taken?;
        let since = Instant::now();
        let pending = scope::allocated_in_poll();
        meter.chain().for_each(|meter| meter.begin_cache_wait(key, since, pending));
        Ok(Self(Some(Begun { meter, key, since, recorded })))
    }
}

impl Drop for CacheCall {
    fn drop(&mut self) {
        let Some(Begun { meter, key, since, recorded }) = self.0.take() else { return };
        let (time, pending) = (since.elapsed(), scope::allocated_in_poll());
        for meter in meter.chain() {
            meter.end_cache_wait(key, pending);
            meter.add_cache_time(key, time);
        }
        recorded.add_time(time);
    }
}
