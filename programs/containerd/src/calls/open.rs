//! The calls that are being answered, and those that end while somebody looks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::broadcast;
use tonic::Code;

/// Calls that are remembered for one who looks slowly.
const BEHIND: usize = 4096;

/// The calls of the daemon. Clones are the same.
#[derive(Clone)]
pub struct OpenCalls {
    inner: Arc<Inner>,
}

struct Inner {
    next: AtomicU64,
    calls: Mutex<BTreeMap<u64, Described>>,
    ended: broadcast::Sender<Ended>,
}

#[derive(Clone, Debug)]
struct Described {
    path: String,
    namespace: String,
    begun: Instant,
}

/// A call that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// `/service/method`.
    pub path: String,
    pub namespace: String,
    pub number: u64,
    pub begun: SystemTime,
    pub took: Duration,
    pub code: Code,
}

/// A call that is being answered.
pub struct OpenCall {
    inner: Arc<Inner>,
    number: u64,
}

impl Default for OpenCalls {
    fn default() -> Self {
        let inner =
            Inner { next: AtomicU64::new(1), calls: Mutex::default(), ended: broadcast::Sender::new(BEHIND) };
        Self { inner: Arc::new(inner) }
    }
}

impl OpenCalls {
    pub(super) fn begin(&self, path: &str, namespace: &str) -> OpenCall {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let described =
            Described { path: path.to_owned(), namespace: namespace.to_owned(), begun: Instant::now() };
        self.inner.calls().insert(number, described);
        OpenCall { inner: self.inner.clone(), number }
    }

    /// What is open now, oldest first: path, namespace, age.
    pub fn list(&self) -> Vec<(String, String, Duration)> {
        let calls = self.inner.calls();
        calls.values().map(|call| (call.path.clone(), call.namespace.clone(), call.begun.elapsed())).collect()
    }

    /// The calls that end from now on.
    pub fn watch(&self) -> broadcast::Receiver<Ended> {
        self.inner.ended.subscribe()
    }
}

impl OpenCall {
    pub(super) fn end(self, code: Code, took: Duration) {
        let Some(call) = self.inner.calls().remove(&self.number) else { return };
        if self.inner.ended.receiver_count() > 0 {
            let begun = SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH);
            let Described { path, namespace, .. } = call;
            // Whoever looked may have gone meanwhile.
            let _ = self.inner.ended.send(Ended { path, namespace, number: self.number, begun, took, code });
        }
    }
}

impl Inner {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, Described>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
