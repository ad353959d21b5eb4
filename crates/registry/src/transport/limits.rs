//! How many requests one host gets at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Parts of blobs that may wait in memory, counted in units of so many bytes.
const PARTS: usize = (24 << 20) / UNIT as usize;
const UNIT: u64 = 64 << 10;

/// A bound on simultaneous requests per host, shared by all resolvers that hold it.
#[derive(Debug)]
pub struct Limits {
    per_host: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Memory for parts of blobs.
    parts: Arc<Semaphore>,
}

impl Limits {
    /// At most `per_host` requests to one host at a time, at least one.
    #[must_use]
    pub fn new(per_host: usize) -> Self {
        let parts = Arc::new(Semaphore::new(PARTS));
        Self { per_host: per_host.max(1), hosts: Mutex::default(), parts }
    }

    /// Memory for a part of a blob, if there is some now.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        Arc::clone(&self.parts).try_acquire_many_owned(units).ok()
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, authority: &str) -> Option<OwnedSemaphorePermit> {
        let semaphore = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            // Hosts that nobody talks to any more are forgotten.
            hosts.retain(|host, semaphore| host == authority || Arc::strong_count(semaphore) > 1);
            let fresh = || Arc::new(Semaphore::new(self.per_host));
            Arc::clone(hosts.entry(authority.to_owned()).or_insert_with(fresh))
        };
        // Fails only for a closed semaphore, and nobody closes it.
        semaphore.acquire_owned().await.ok()
    }
}

impl Default for Limits {
    /// Ten requests per host.
    fn default() -> Self {
        Self::new(10)
    }
}
