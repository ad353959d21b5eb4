//! What the writer tells the collector: how much was written, and, while it collects, what.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::database::lock;

/// Counts since the last collection, and a journal during one.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    mutations: AtomicU64,
    deletions: AtomicU64,
    changed: Notify,
    /// Keys written while the collector decides: it must look at them again.
    journal: Mutex<Option<Vec<Vec<u8>>>>,
}

impl Activity {
    /// A change was made.
    pub fn add(&self, deletions: u64) {
        self.mutations.fetch_add(1, Ordering::SeqCst);
        self.deletions.fetch_add(deletions, Ordering::SeqCst);
    }

    /// Changes are durable.
    pub fn tell(&self) {
        self.changed.notify_one();
    }

    /// Waits until changes were made since it was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Changes, and deletions among them, since the last [`Activity::reset`].
    pub fn counts(&self) -> (u64, u64) {
        (self.mutations.load(Ordering::SeqCst), self.deletions.load(Ordering::SeqCst))
    }

    /// A collection begins: it covers all that was counted.
    pub fn reset(&self) -> (u64, u64) {
        (self.mutations.swap(0, Ordering::SeqCst), self.deletions.swap(0, Ordering::SeqCst))
    }

    /// Begins to note what is written. Called within a change, so that there is no gap between what a view
    /// shows that is taken after it and what is noted.
    pub fn open_journal(&self) {
        *lock(&self.journal) = Some(Vec::new());
    }

    pub fn close_journal(&self) {
        lock(&self.journal).take();
    }

    /// Notes a key, if a journal is open.
    pub fn note(&self, key: &[u8]) {
        if let Some(journal) = lock(&self.journal).as_mut() {
            journal.push(key.to_vec());
        }
    }

    /// At most so many of the keys that were noted since the last time, and whether there are more.
    pub fn drain_journal(&self, most: usize) -> (Vec<Vec<u8>>, bool) {
        let mut journal = lock(&self.journal);
        let Some(journal) = journal.as_mut() else { return Default::default() };
        let keys = journal.split_off(journal.len().saturating_sub(most));
        (keys, !journal.is_empty())
    }
}
