//! The collector: marks on a consistent view what is reachable, removes the rest in small changes so that
//! writers never wait long, and asks the owners of files to sweep (spec 01 §16).
//!
//! What is written while it works is looked at again before anything is removed, so nothing that became
//! referenced meanwhile is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use corten_api::services::images as told;
use corten_events::Exchange;
use corten_types::{Context, Error, Namespace, Result};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::database::{Database, Reader, Tx};
use crate::graph::{self, Entry, FLAT, Node};
use crate::keys::{Key, Kind};
use crate::records::{self, get};
use crate::snapshots::SnapshotRecords;
use crate::{leases, snapshots};

/// Records removed by one change at most.
const BATCH: usize = 100;

/// Removes from disk what no record knows.
#[async_trait::async_trait]
pub trait Sweeper: Send + Sync {
    /// One sweep; what cannot be removed now is tried again next time.
    ///
    /// # Errors
    /// Those of the file system.
    async fn sweep(&self) -> Result<()>;
}

/// When the collector works.
#[derive(Clone, Debug)]
pub struct CollectorOptions {
    /// Wait after the start.
    pub startup_delay: Duration,
    /// Wait after a request.
    pub schedule_delay: Duration,
    /// How often it looks whether anything was deleted.
    pub interval: Duration,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self {
            startup_delay: Duration::from_millis(100),
            schedule_delay: Duration::ZERO,
            interval: Duration::from_secs(1),
        }
    }
}

/// The running collector. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Collector {
    requests: mpsc::Sender<oneshot::Sender<Result<()>>>,
    deleted: Arc<Notify>,
}

struct Work {
    database: Database,
    exchange: Exchange,
    sweepers: Vec<Arc<dyn Sweeper>>,
}

impl Collector {
    /// Starts it.
    #[must_use]
    pub fn start(
        database: Database,
        exchange: Exchange,
        sweepers: Vec<Arc<dyn Sweeper>>,
        options: CollectorOptions,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let deleted = Arc::new(Notify::new());
        let work = Work { database, exchange, sweepers };
        tokio::spawn(run(work, receiver, Arc::clone(&deleted), options));
        Self { requests, deleted }
    }

    /// Collects and waits for the end.
    ///
    /// # Errors
    /// Those of the collection.
    pub async fn trigger(&self) -> Result<()> {
        let (answer, result) = oneshot::channel();
        let closed = || Error::unavailable("the collector has ended");
        self.requests.send(answer).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// Something was deleted: there may be work soon.
    pub fn note_deletion(&self) {
        self.deleted.notify_one();
    }
}

async fn run(
    work: Work,
    mut requests: mpsc::Receiver<oneshot::Sender<Result<()>>>,
    deleted: Arc<Notify>,
    options: CollectorOptions,
) {
    let mut first = true;
    let mut waiting = Vec::new();
    loop {
        if first {
            tokio::select! {
                () = tokio::time::sleep(options.startup_delay) => {}
                request = requests.recv() => match request {
                    Some(answer) => waiting.push(answer),
                    None => return,
                },
            }
            first = false;
        } else {
            tokio::select! {
                () = deleted.notified() => tokio::time::sleep(options.interval).await,
                request = requests.recv() => match request {
                    Some(answer) => waiting.push(answer),
                    None => return,
                },
                // Leases and ingests run out without anybody deleting them.
                () = tokio::time::sleep(Duration::from_secs(600)) => {}
            }
        }
        if !waiting.is_empty() && !options.schedule_delay.is_zero() {
            tokio::time::sleep(options.schedule_delay).await;
        }
        while let Ok(answer) = requests.try_recv() {
            waiting.push(answer);
        }
        let result = work.collect().await;
        if let Err(error) = &result {
            tracing::error!(%error, "the collection failed");
        }
        for answer in waiting.drain(..) {
            let _ = answer.send(result.clone());
        }
    }
}

impl Work {
    async fn collect(&self) -> Result<()> {
        self.database.raise_barrier();
        let result = self.collect_records().await;
        self.database.lower_barrier();
        result?;
        for sweeper in &self.sweepers {
            if let Err(error) = sweeper.sweep().await {
                tracing::error!(%error, "what is no longer known could not all be removed from disk");
            }
        }
        Ok(())
    }

    async fn collect_records(&self) -> Result<()> {
        let view = self.database.read()?;
        let garbage = tokio::task::spawn_blocking(move || unreachable_nodes(&view, SystemTime::now()))
            .await
            .map_err(|error| Error::internal(format!("collector: {error}")))??;
        for (namespace, nodes) in garbage {
            let Ok(namespace) = Namespace::new(namespace) else { continue };
            // Leaves first: a snapshot with children is not removed.
            let mut nodes = nodes;
            loop {
                let before = nodes.len();
                let mut kept = Vec::new();
                for batch in nodes.chunks(BATCH) {
                    let (batch, namespace2) = (batch.to_vec(), namespace.clone());
                    let (removed, again) =
                        self.database.write(move |tx| remove(tx, &namespace2, batch)).await?;
                    self.tell(&namespace, removed);
                    kept.extend(again);
                }
                if kept.is_empty() || kept.len() == before {
                    break;
                }
                nodes = kept;
            }
        }
        Ok(())
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

/// Removes what is still unreachable; answers what was removed and what has to wait for its children.
fn remove(tx: &mut Tx<'_>, namespace: &Namespace, batch: Vec<Node>) -> Result<(Vec<Node>, Vec<Node>)> {
    let touched = reachable_from_written(tx, namespace)?;
    let ctx = Context::new(namespace.clone());
    let (mut removed, mut waiting) = (Vec::new(), Vec::new());
    for node in batch {
        if touched.contains(&node) {
            continue;
        }
        match &node {
            Node::Snapshot(snapshotter, name) => {
                if snapshots::collect(tx, &ctx, snapshotter, name)? {
                    removed.push(node);
                } else {
                    waiting.push(node);
                }
                continue;
            }
            Node::Lease(id) => match leases::remove(tx, namespace, id) {
                Ok(()) => {}
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            },
            other => tx.remove(&graph::key(namespace.as_str(), other)?),
        }
        removed.push(node);
    }
    Ok((removed, waiting))
}

/// What was written since the marking began, and all that it leads to.
fn reachable_from_written(tx: &Tx<'_>, namespace: &Namespace) -> Result<HashSet<Node>> {
    let mut pending: Vec<Node> = Vec::new();
    for key in tx.written() {
        if let Some((of, node)) = graph::node(&key) {
            if of == namespace.as_str() && tx.get_bytes(&key)?.is_some() {
                pending.push(node);
            }
        } else if key.first() == Some(&(Kind::Resource as u8))
            && let [of, _, kind, id] = Key::parts(&key).as_slice()
            && of == namespace.as_str()
            && tx.get_bytes(&key)?.is_some()
        {
            pending.extend(graph::resource(kind, id));
        }
    }
    let now = SystemTime::now();
    let mut found = HashSet::new();
    while let Some(node) = pending.pop() {
        if found.contains(&node) {
            continue;
        }
        if let Some(bytes) = tx.get_bytes(graph::key(namespace.as_str(), &node)?.bytes())? {
            let entry = graph::entry(&node, &bytes, now)?;
            pending.extend(entry.refs.into_iter().chain(entry.flat));
        }
        found.insert(node);
    }
    Ok(found)
}

/// By namespace, what no root leads to. Containers and sandboxes are never among it.
pub(crate) fn unreachable_nodes(view: &impl Reader, now: SystemTime) -> Result<BTreeMap<String, Vec<Node>>> {
    let mut spaces: BTreeMap<String, HashMap<Node, Entry>> = BTreeMap::new();
    for kind in
        [Kind::Container, Kind::Image, Kind::Blob, Kind::Snapshot, Kind::Ingest, Kind::Lease, Kind::Sandbox]
    {
        view.scan_bytes(Key::prefix(kind, &[]).bytes(), &mut |key, value| {
            if let Some((namespace, node)) = graph::node(key) {
                // A record that cannot be read is kept, and must not stop the others.
                let entry =
                    graph::entry(&node, value, now).unwrap_or(Entry { root: true, ..Entry::default() });
                spaces.entry(namespace).or_default().insert(node, entry);
            }
            Ok(true)
        })?;
    }
    let mut garbage = BTreeMap::new();
    for (namespace, nodes) in spaces {
        let marked = mark(view, &namespace, &nodes)?;
        let mut left: Vec<Node> = nodes.into_keys().filter(|node| !marked.contains(node)).collect();
        left.retain(|node| !matches!(node, Node::Container(_) | Node::Sandbox(_)));
        left.sort();
        if !left.is_empty() {
            garbage.insert(namespace, left);
        }
    }
    Ok(garbage)
}

fn mark(view: &impl Reader, namespace: &str, nodes: &HashMap<Node, Entry>) -> Result<HashSet<Node>> {
    let mut children: HashMap<&Node, Vec<&Node>> = HashMap::new();
    for (node, entry) in nodes {
        for parent in &entry.back {
            children.entry(parent).or_default().push(node);
        }
    }
    let mut full: Vec<Node> = Vec::new();
    let mut flat: Vec<Node> = Vec::new();
    for (node, entry) in nodes.iter().filter(|(_, entry)| entry.root) {
        full.push(node.clone());
        full.extend(entry.refs.iter().cloned());
        if let Node::Lease(id) = node {
            let Ok(owner) = Namespace::new(namespace) else { continue };
            let lease: Option<records::Lease> = get(view, &Key::new(Kind::Lease, &[namespace, id])?)?;
            let is_flat = lease.is_some_and(|lease| lease.labels.contains_key(FLAT));
            let held = leases::resources_of(view, &owner, id)?;
            let held = held.iter().filter_map(|resource| graph::resource(&resource.kind, &resource.id));
            if is_flat { flat.extend(held) } else { full.extend(held) }
        }
    }
    let mut marked: HashSet<Node> = HashSet::new();
    let mut followed: BTreeSet<Node> = BTreeSet::new();
    while let Some(node) = full.pop() {
        marked.insert(node.clone());
        if !followed.insert(node.clone()) {
            continue;
        }
        if let Some(entry) = nodes.get(&node) {
            full.extend(entry.refs.iter().chain(&entry.flat).cloned());
        }
        if let Some(children) = children.get(&node) {
            full.extend(children.iter().map(|child| (*child).clone()));
        }
    }
    while let Some(node) = flat.pop() {
        if !marked.insert(node.clone()) {
            continue;
        }
        if let Some(entry) = nodes.get(&node) {
            flat.extend(entry.flat.iter().cloned());
        }
    }
    Ok(marked)
}
