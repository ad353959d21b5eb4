//! The collector: when it works, and how it removes what is garbage (spec 01 §16).
//!
//! It marks beside the writers, on short views one after the other, and removes in small changes, so that nobody waits
//! long. What is written while it works is looked at again before anything is removed, so nothing that became
//! referenced meanwhile is lost. Then the owners of files sweep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use corten_api::services::images as told;
use corten_events::Exchange;
use corten_types::{Context, Error, Namespace, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::database::Database;
use crate::graph::{self, Node};
use crate::keys::{Key, Kind};
use crate::mark::{self, Marks};
use crate::snapshots::SnapshotRecords;
use crate::transaction::{Passing, Reader, Tx};
use crate::{leases, snapshots};

/// Records removed by one change at most.
const BATCH: usize = 100;
/// Keys that others wrote, looked at by one change at first.
const LOOKED_AT: usize = 200;
/// Wait before the first measurement of a run.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A run counts as this long at least.
const SHORTEST_RUN: Duration = Duration::from_millis(5);
/// Wait after a run that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// The clock may be set: an expiry is looked at this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Removes from disk what no record knows.
#[async_trait::async_trait]
pub trait Sweeper: Send + Sync {
    /// One sweep; what cannot be removed now is tried again next time.
    ///
    /// # Errors
    /// Those of the file system.
    async fn sweep(&self) -> Result<()>;
}

/// When the collector works, as the original's `io.containerd.gc.v1.scheduler` has it.
#[derive(Clone, Debug)]
pub struct CollectorOptions {
    /// Share of the time that it may take, 0 to 0.5; 0 stands for a pause of a second.
    pub pause_threshold: f64,
    /// Deletions after which it works without a pause; 0 for never.
    pub deletion_threshold: u64,
    /// Changes after which it works though nothing was deleted; 0 for never.
    pub mutation_threshold: u64,
    /// Wait after a request or many deletions.
    pub schedule_delay: Duration,
    /// Wait after the start.
    pub startup_delay: Duration,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

/// The running collector. Clones are the same one; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Collector {
    requests: mpsc::Sender<Request>,
    runs: Arc<Mutex<Runs>>,
}

/// What the collector has done since it was started.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// Collections that succeeded.
    pub succeeded: u64,
    /// Collections that failed.
    pub failed: u64,
    /// What those that succeeded took together.
    pub spent: Duration,
    /// How many of them took at most so many seconds, and longer than the bound before.
    pub within: [u64; Runs::BOUNDS.len()],
}

impl Runs {
    /// Bounds of durations, in seconds.
    pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

    fn note(&mut self, took: Duration, succeeded: bool) {
        if !succeeded {
            self.failed += 1;
            return;
        }
        self.succeeded += 1;
        self.spent += took;
        let bucket =
            Self::BOUNDS.iter().zip(&mut self.within).find(|(bound, _)| took.as_secs_f64() <= **bound);
        if let Some((_, count)) = bucket {
            *count += 1;
        }
    }
}

type Request = oneshot::Sender<Result<()>>;

impl Collector {
    /// Starts it, within a runtime. It notices by itself what is deleted and what runs out.
    #[must_use]
    pub fn start(
        database: Database,
        exchange: Exchange,
        sweepers: Vec<Arc<dyn Sweeper>>,
        options: CollectorOptions,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let work = Work::new(database, exchange, sweepers);
        let due = Instant::now() + options.startup_delay;
        let schedule = Schedule { options, due, must: true, expiry: None, runs: 0, spent: Duration::ZERO };
        let runs = Arc::<Mutex<Runs>>::default();
        tokio::spawn(run(work, schedule, receiver, runs.clone()));
        Self { requests, runs }
    }

    /// What it has done so far.
    #[must_use]
    pub fn runs(&self) -> Runs {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Collects, from here on, and waits for the end.
    ///
    /// # Errors
    /// `gc failed` with the reason; it is tried again later.
    pub async fn trigger(&self) -> Result<()> {
        let (answer, result) = oneshot::channel();
        let closed = || Error::unavailable("the collector has ended");
        self.requests.send(answer).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }
}

async fn run(
    mut work: Work,
    mut schedule: Schedule,
    mut requests: mpsc::Receiver<Request>,
    runs: Arc<Mutex<Runs>>,
) {
    while let Some(mut waiting) = schedule.wait(&work.database, &mut requests).await {
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        let begun = Instant::now();
        let result = work.collect(schedule.must || !waiting.is_empty()).await;
        if let Err(error) = &result {
            tracing::error!(%error, "the collection failed");
        }
        runs.lock().unwrap_or_else(PoisonError::into_inner).note(begun.elapsed(), result.is_ok());
        schedule.ran(begun.elapsed(), result.as_ref().map(|expiry| *expiry).map_err(|_| ()));
        let result = result.map(drop).map_err(|error| error.context("gc failed"));
        for request in waiting {
            // Who asked may have gone.
            let _ = request.send(result.clone());
        }
    }
}

/// When to work next.
struct Schedule {
    options: CollectorOptions,
    /// Not before, unless asked.
    due: Instant,
    /// Whatever was written.
    must: bool,
    /// When something runs out by itself.
    expiry: Option<SystemTime>,
    runs: u32,
    spent: Duration,
}

impl Schedule {
    /// Waits until there is work; answers who asked for it, or nothing when nobody can any more.
    async fn wait(
        &mut self,
        database: &Database,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<Vec<Request>> {
        loop {
            if self.expiry.is_some_and(|expiry| expiry <= SystemTime::now()) {
                (self.must, self.expiry) = (true, None);
            }
            let (mutations, deletions) = database.activity().counts();
            let reached = |count: u64, threshold: u64| threshold > 0 && count >= threshold;
            if reached(deletions, self.options.deletion_threshold) {
                tokio::time::sleep(self.options.schedule_delay).await;
                return Some(Vec::new());
            }
            let worth = self.must || deletions > 0 || reached(mutations, self.options.mutation_threshold);
            let sleep = self.expiry.map_or(LONGEST_SLEEP, |expiry| {
                expiry.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_SLEEP)
            });
            tokio::select! {
                request = requests.recv() => {
                    tokio::time::sleep(self.options.schedule_delay).await;
                    return Some(vec![request?]);
                }
                () = tokio::time::sleep_until(self.due), if worth => return Some(Vec::new()),
                () = database.activity().changed() => {}
                () = tokio::time::sleep(sleep), if self.expiry.is_some() && !worth => {}
            }
        }
    }

    fn ran(&mut self, took: Duration, result: Result<Option<SystemTime>, ()>) {
        let now = Instant::now();
        let Ok(expiry) = result else {
            (self.must, self.due) = (true, now + AFTER_FAILURE);
            return;
        };
        (self.must, self.expiry) = (false, expiry);
        self.runs = self.runs.saturating_add(1);
        self.spent += took.max(SHORTEST_RUN);
        let average = self.spent / self.runs;
        let share = self.options.pause_threshold.clamp(0.0, 0.5);
        let pause = if share > 0.0 { average.mul_f64(1.0 / share - 1.0) } else { FIRST_PAUSE };
        self.due = now + pause;
    }
}

/// One collection after the other.
struct Work {
    database: Database,
    exchange: Exchange,
    sweepers: Vec<Arc<dyn Sweeper>>,
    /// Files may be left that no record knows.
    unswept: bool,
    holding: bool,
}

impl Work {
    fn new(database: Database, exchange: Exchange, sweepers: Vec<Arc<dyn Sweeper>>) -> Self {
        Self { database, exchange, sweepers, unswept: true, holding: false }
    }

    /// Collects; answers when something runs out next.
    async fn collect(&mut self, must_sweep: bool) -> Result<Option<SystemTime>> {
        let (_, deletions) = self.database.activity().reset();
        self.unswept |= must_sweep || deletions > 0;
        let result = self.collect_records().await;
        self.database.activity().close_journal();
        let (removed, expiry) = result?;
        self.unswept |= removed > 0;
        if self.unswept && !self.must_hold() {
            self.unswept = false;
            for sweeper in &self.sweepers {
                if let Err(error) = sweeper.sweep().await {
                    self.unswept = true;
                    tracing::error!(%error, "what is no longer known could not all be removed from disk");
                }
            }
        }
        Ok(expiry)
    }

    /// While a damaged database lies beside this one, what looks unknown may be known to it: the images
    /// and the file systems of containers that run.
    fn must_hold(&mut self) -> bool {
        let damaged = self.database.set_aside();
        if let Some(path) = damaged.first().filter(|_| !self.holding) {
            tracing::warn!(
                path = %path.display(),
                "nothing is removed from disk while there is a damaged database: pull and create again what \
                 is missing, which finds data that is there still, then remove this file to free space"
            );
        }
        self.holding = !damaged.is_empty();
        self.holding
    }

    async fn collect_records(&self) -> Result<(usize, Option<SystemTime>)> {
        let begin = |tx: &mut Tx<'_>| {
            tx.open_journal();
            Ok(())
        };
        self.database.write(begin).await?;
        let view = Passing::new(self.database.clone());
        let plan = aside(move || mark::plan(&view, SystemTime::now())).await?;
        let (mut count, mut again) = (0, Again::default());
        for (namespace, nodes) in plan.garbage {
            let mut batches = nodes.chunks(BATCH).peekable();
            while let Some(batch) = batches.peek() {
                let (batch, owner) = (batch.to_vec(), namespace.clone());
                let change = move |tx: &mut Tx<'_>| {
                    // Only who has looked at all of it may remove.
                    let removed =
                        if again.look(tx)? { None } else { Some(remove(tx, &owner, batch, &again)?) };
                    Ok((removed, again))
                };
                let removed;
                (removed, again) = self.database.write(change).await?;
                let Some(removed) = removed else { continue };
                batches.next();
                count += removed.len();
                self.tell(&namespace, removed);
            }
        }
        Ok((count, plan.next_expiry))
    }

    fn tell(&self, namespace: &Namespace, removed: Vec<Node>) {
        let snapshots = SnapshotRecords::new(self.database.clone(), self.exchange.clone());
        for node in removed {
            match node {
                Node::Snapshot(snapshotter, name) => snapshots.tell_removed(namespace, &snapshotter, &name),
                Node::Image(name) => {
                    self.exchange.publish(namespace, "/images/delete", &told::ImageDelete { name });
                }
                _ => {}
            }
        }
    }
}

/// Works on a thread of its own, at the priority of all others: one that waits long for its turn would keep those
/// waiting who need a page that it is just reading.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("collector".into());
    thread.spawn(move || {
        // Nobody waits when the daemon ends.
        let _ = answer.send(work());
    })?;
    result.await.map_err(|_| Error::internal("the marking panicked"))?
}

/// What was written since the marking began, and all that it leads to, by namespace.
#[derive(Debug, Default)]
struct Again {
    spaces: HashMap<String, Marks>,
    /// Keys to look at next, when there were more than those of the last time: twice as many, so that it comes to an
    /// end whatever others write.
    more: usize,
}

impl Again {
    /// Looks at some of it; answers whether there is more.
    fn look(&mut self, tx: &mut Tx<'_>) -> Result<bool> {
        let mut pending: HashMap<String, Vec<Node>> = HashMap::new();
        let most = self.more.max(LOOKED_AT);
        let (keys, more) = tx.drain_journal(most);
        self.more = if more { most.saturating_mul(2) } else { 0 };
        for key in keys {
            let Some((namespace, node)) = graph::node(&key).or_else(|| held(&key)) else { continue };
            if tx.get_bytes(&key)?.is_some() {
                pending.entry(namespace).or_default().push(node);
            }
        }
        for (name, nodes) in pending {
            let Ok(namespace) = Namespace::new(name.as_str()) else { continue };
            let marks = self.spaces.entry(name).or_default();
            nodes.iter().for_each(|node| marks.forget(node));
            marks.follow(tx, &namespace, nodes, &HashMap::new())?;
        }
        Ok(more)
    }

    fn contain(&self, namespace: &Namespace, node: &Node) -> bool {
        self.spaces.get(namespace.as_str()).is_some_and(|marks| marks.contain(node))
    }
}

/// The namespace and node of the key of a lease's resource.
fn held(key: &[u8]) -> Option<(String, Node)> {
    let [namespace, _, kind, id] = Key::parts(key).try_into().ok()?;
    let node = (key.first() == Some(&(Kind::Resource as u8))).then(|| graph::resource(&kind, &id))??;
    Some((namespace, node))
}

/// Removes what is still garbage, and answers what that was.
fn remove(tx: &mut Tx<'_>, namespace: &Namespace, batch: Vec<Node>, again: &Again) -> Result<Vec<Node>> {
    let ctx = Context::new(namespace.clone());
    let mut removed = Vec::new();
    for node in batch {
        let key = graph::key(namespace.as_str(), &node)?;
        if again.contain(namespace, &node) || tx.get_bytes(key.bytes())?.is_none() {
            continue;
        }
        match &node {
            // One that has children by now stays for the next time.
            Node::Snapshot(snapshotter, name) => {
                if !snapshots::collect(tx, &ctx, snapshotter, name)? {
                    continue;
                }
            }
            Node::Lease(id) => leases::remove(tx, namespace, id)?,
            _ => tx.remove(&key),
        }
        removed.push(node);
    }
    Ok(removed)
}
