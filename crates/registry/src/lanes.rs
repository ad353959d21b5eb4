//! Further connections for one large blob, where a single one is what holds it up.
//!
//! One connection is watched first. If the blob comes slowly although whoever takes it always waits, and
//! there is much left of it, the rest is fetched in parts over two connections; a further one is added as
//! long as each brings a clear gain. Parts wait in memory for their turn, and all of them together are
//! bounded. Anything unexpected ends it, and the blob goes on over one connection. Where parts are asked for by
//! the configuration, a blob that is larger than one starts with them.

use std::collections::VecDeque;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use corten_types::Descriptor;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::fetch::Fetcher;
use crate::transport::{Transport, TransportKind};

const PART: u64 = 2 << 20;
/// Bounds of parts that the configuration asks for.
const MIN_PART: u64 = 64 << 10;
const MAX_PART: u64 = 8 << 20;
const MAX_LANES: usize = 6;
/// A connection that brings this much per second is not what holds a pull up.
const FAST: f64 = 100e6;
/// Splitting is worth its requests only if one connection had so many more seconds to go.
const WORTHWHILE: f64 = 2.0;
/// By how much another connection has to speed things up to be kept.
const GAIN: f64 = 1.2;

/// Zero or more connections beside the first one.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// The host that is asked; nothing if the blob is never split.
    authority: Option<String>,
    /// How many connections there should be; 1 while nothing is split.
    count: usize,
    /// Whether another one is still worth a try.
    growing: bool,
    best_rate: f64,
    window: Window,
    parts: VecDeque<Part>,
    /// Memory of the part that was last passed on, until the next one is asked for.
    passed_on: Option<OwnedSemaphorePermit>,
    /// Where the next part starts.
    next: u64,
    /// Bytes of a part.
    part: u64,
}

/// What came within a while.
#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    waited: Duration,
}

impl Window {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, waited: Duration::ZERO }
    }
}

/// A part on its way. Dropping it ends its request.
#[derive(Debug)]
struct Part {
    task: JoinHandle<Result<Bytes, Transport>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lanes {
    /// For a blob that comes from a host.
    pub fn new(authority: &str) -> Self {
        Self {
            authority: Some(authority.to_owned()),
            count: 1,
            growing: true,
            best_rate: 0.0,
            window: Window::new(),
            parts: VecDeque::new(),
            passed_on: None,
            next: 0,
            part: PART,
        }
    }

    /// For a blob that is never split.
    pub fn never() -> Self {
        Self { authority: None, ..Self::new("") }
    }

    /// Takes note of how long a chunk takes and how much it brings.
    pub async fn watch<T: AsChunk>(&mut self, chunk: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let chunk = chunk.await;
        self.window.waited += start.elapsed();
        self.window.bytes += chunk.size();
        chunk
    }

    /// Whether the bytes at `offset` come in parts. Starts the parts that are missing.
    pub fn turn(&mut self, fetcher: &Fetcher, descriptor: &Descriptor, offset: u64) -> bool {
        self.passed_on = None;
        let Some(authority) = self.authority.clone() else { return false };
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        if let Some(parts) = fetcher.parts().filter(|_| self.count == 1 && self.growing) {
            self.growing = false;
            self.part = parts.size.clamp(MIN_PART, MAX_PART);
            if size.saturating_sub(offset) > self.part && parts.count > 1 {
                (self.count, self.next) = (parts.count.min(MAX_LANES), offset);
            }
        } else if self.window.since.elapsed() >= fetcher.split_after() {
            self.decide(size.saturating_sub(offset));
            if self.count > 1 && self.next == 0 {
                self.next = offset;
            }
        }
        if self.count == 1 {
            return false;
        }
        while self.parts.len() < self.count && self.next < size {
            let range = self.next..size.min(self.next + self.part);
            let Some(permit) = fetcher.limits().reserve(range.end - range.start) else { break };
            self.next = range.end;
            let (fetcher, descriptor, authority) = (fetcher.clone(), descriptor.clone(), authority.clone());
            let task = tokio::spawn(async move { fetcher.part(&authority, &descriptor, range).await });
            self.parts.push_back(Part { task, permit: Some(permit) });
        }
        if self.parts.is_empty() && self.next == offset {
            // No memory for parts now; perhaps later.
            (self.count, self.next) = (1, 0);
            return false;
        }
        true
    }

    /// The next part.
    pub async fn next(&mut self, offset: u64) -> Result<Option<Bytes>, Transport> {
        let Some(part) = self.parts.front_mut() else {
            let text = format!("no part for offset {offset}");
            return Err(Transport::new(TransportKind::Other, text));
        };
        let start = Instant::now();
        let done = (&mut part.task).await;
        self.window.waited += start.elapsed();
        self.passed_on = self.parts.pop_front().and_then(|mut part| part.permit.take());
        let failed = |error: tokio::task::JoinError| Transport::new(TransportKind::Other, error.to_string());
        let part = done.map_err(failed)??;
        self.window.bytes += part.len() as u64;
        Ok(Some(part))
    }

    /// Looks at what came since the last time, and changes the number of connections.
    fn decide(&mut self, left: u64) {
        let elapsed = self.window.since.elapsed().as_secs_f64().max(0.001);
        let rate = self.window.bytes as f64 / elapsed;
        let starved = self.window.waited.as_secs_f64() / elapsed > 0.6;
        self.window = Window::new();
        let slow = starved && rate < FAST && left as f64 > rate * WORTHWHILE && left > 4 * PART;
        if !self.growing || !slow {
            return;
        }
        if self.count > 1 && rate < self.best_rate * GAIN {
            self.growing = false;
            return;
        }
        self.best_rate = rate;
        self.count = (self.count + 1).min(MAX_LANES);
        tracing::debug!(rate, connections = self.count, "a blob comes slowly");
    }
}

/// A chunk, as far as its size goes.
pub(crate) trait AsChunk {
    fn size(&self) -> u64;
}

impl AsChunk for Result<Option<Bytes>, Transport> {
    fn size(&self) -> u64 {
        self.as_ref().ok().and_then(Option::as_ref).map_or(0, |chunk| chunk.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lanes: &mut Lanes, megabytes_per_second: u64, starved: bool) -> usize {
        let second = Duration::from_secs(1);
        lanes.window.since = Instant::now().checked_sub(second).unwrap();
        lanes.window.bytes = megabytes_per_second * 1_000_000;
        lanes.window.waited = if starved { second } else { Duration::ZERO };
        lanes.decide(1 << 30);
        lanes.count
    }

    #[test]
    fn connections_are_added_while_they_help() {
        let mut lanes = Lanes::new("host");
        assert_eq!(after(&mut lanes, 10, false), 1, "whoever takes the bytes is slow, not the network");
        assert_eq!(after(&mut lanes, 200, true), 1, "fast enough");
        assert_eq!(after(&mut lanes, 10, true), 2);
        assert_eq!(after(&mut lanes, 19, true), 3);
        assert_eq!(after(&mut lanes, 20, true), 3, "the third one brought nothing");
        assert_eq!(after(&mut lanes, 90, true), 3, "that was the last try");
    }

    #[test]
    fn a_short_rest_is_not_split() {
        let mut lanes = Lanes::new("host");
        lanes.window.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        lanes.window.waited = Duration::from_secs(1);
        lanes.decide(PART);
        assert_eq!(lanes.count, 1);
    }
}
