//! Round trips to caches.

use std::time::Duration;

use super::super::{Meter, Suspect};
use crate::error::Cut;
use crate::key::Key;
use crate::memory;
use crate::resource::Resource;
use crate::time::nanos;

impl Meter {
    /// Counts one round trip to a cache that is about to be made, here and in all that this work
    /// runs inside; or nowhere, if a hard limit of any of them forbids it.
    pub(crate) fn take_cache_call(&self, key: Key, command: &str) -> Result<(), Cut> {
        let give_back = |meter: &Self| {
            meter.give_back(Resource::CacheCalls);
            meter.rare().caches.give_back(key);
        };
        self.take_in_all(|meter| meter.take_cache_call_here(key, command), give_back)?;
        for meter in self.chain() {
            meter.check_taken(Resource::CacheCalls, Suspect::TopCacheCall);
            let repeated = meter.rare().caches.repeated(key);
            meter.raise(Resource::RepeatedCacheCalls, repeated, Suspect::Cache(key));
        }
        Ok(())
    }

    fn take_cache_call_here(&self, key: Key, command: &str) -> Result<(), Cut> {
        self.take_here(Resource::CacheCalls, Suspect::TopCacheCall)?;
        let most = self.limits().hard(Resource::RepeatedCacheCalls);
        if memory::aside(|| self.rare().caches.take(key, command, most)).is_none() {
            self.give_back(Resource::CacheCalls);
            return Err(self.refuse(Resource::RepeatedCacheCalls, Suspect::Cache(key)));
        }
        Ok(())
    }

    /// Charges the wait for one round trip.
    pub(crate) fn add_cache_time(&self, key: Key, time: Duration) {
        self.rare().caches.add_time(key, nanos(time));
        self.add(Resource::CacheTime, nanos(time), Suspect::Cache(key));
    }
}
