//! How many requests one host gets at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of 2 MiB each.
const MAX_PARTS: usize = 12;

/// A bound on simultaneous requests per host, shared by all resolvers that hold it.
#[derive(Debug)]
pub struct Limits {
    per_host: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Parts of blobs that may wait in memory at once.
    pub(crate) parts: Arc<Semaphore>,
}

impl Limits {
    /// At most `per_host` requests to one host at a time, at least one.
    #[must_use]
    pub fn new(per_host: usize) -> Self {
        let parts = Arc::new(Semaphore::new(MAX_PARTS));
        Self { per_host: per_host.max(1), hosts: Mutex::default(), parts }
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
