//! Work that is done once: whoever wants the same thing at the same time waits for the one who does it,
//! and then finds it done. Whoever waits goes on himself if the other gives up.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Things being worked on, by key.
#[derive(Debug)]
pub(crate) struct Flights<K> {
    entries: Mutex<HashMap<K, Weak<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    turn: Arc<Semaphore>,
    progress: AtomicU64,
}

/// The right to work on a thing, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    entry: Arc<Entry>,
    _permit: OwnedSemaphorePermit,
}

/// A thing that somebody works on, perhaps we ourselves in a moment.
#[derive(Debug)]
pub(crate) struct Flight(Arc<Entry>);

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<K: Eq + Hash> Flights<K> {
    /// The flight of a key.
    pub fn join(&self, key: K) -> Flight {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.strong_count() > 0);
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade) {
            return Flight(entry);
        }
        let turn = Arc::new(Semaphore::new(1));
        let entry = Arc::new(Entry { turn, progress: AtomicU64::new(0) });
        entries.insert(key, Arc::downgrade(&entry));
        Flight(entry)
    }
}

impl Flight {
    /// The right to work, if nobody has it.
    pub fn try_turn(&self) -> Option<Turn> {
        let permit = Arc::clone(&self.0.turn).try_acquire_owned().ok()?;
        Some(Turn { entry: Arc::clone(&self.0), _permit: permit })
    }

    /// Waits for the right to work. Others may have finished meanwhile.
    pub async fn turn(&self) -> Turn {
        loop {
            // Fails only for a closed semaphore, and nobody closes it.
            if let Ok(permit) = Arc::clone(&self.0.turn).acquire_owned().await {
                return Turn { entry: Arc::clone(&self.0), _permit: permit };
            }
        }
    }

    /// How far the one who works is, in bytes.
    pub fn progress(&self) -> u64 {
        self.0.progress.load(Ordering::Relaxed)
    }
}

impl Turn {
    /// Tells those who wait how far the work is.
    pub fn advance(&self, progress: u64) {
        self.entry.progress.store(progress, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_works_and_the_others_wait() {
        let flights = Arc::new(Flights::default());
        let first = flights.join("a");
        let turn = first.try_turn().unwrap();
        let second = flights.join("a");
        assert!(second.try_turn().is_none());
        assert!(flights.join("b").try_turn().is_some());
        turn.advance(7);
        assert_eq!(second.progress(), 7);
        let waiter = tokio::spawn(async move {
            second.turn().await;
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(turn);
        waiter.await.unwrap();
        drop(first);
        flights.join("c");
        assert_eq!(flights.entries.lock().unwrap().len(), 1, "what is done is forgotten");
    }
}
