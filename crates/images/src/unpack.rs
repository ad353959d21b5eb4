//! From layers to a stack of snapshots (spec 03 §5).
//!
//! Where the snapshotter can put a layer under another one afterwards (`rebase`), layers are extracted in
//! any order, each while it arrives, and the stack is put together at the end: all of it is on disk, with
//! one sync, before the first of its records is. Elsewhere each layer is extracted on top of the one below.
//! A layer becomes visible only after its blob and its content have the digests they should.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use corten_diff::{Applied, ApplyRequest, Differs, Source};
use corten_snapshots::Commit;
use corten_types::{Context, Descriptor, Digest, Error, Labels, Mount, Result, ResultExt, timestamp};
use futures_util::future::try_join_all;
use tokio::sync::oneshot;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::ImageService;
use crate::blob::{Fetched, Incoming, Origin, ingest_key, size};
use crate::flight::Turn;
use crate::labels;
use crate::manifest::chain_ids;
use crate::progress::{Meter, ProgressSender};

const PREPARE_ATTEMPTS: u32 = 3;

/// One layer to be unpacked.
#[derive(Clone, Debug)]
struct Layer {
    descriptor: Descriptor,
    diff_id: Digest,
    chain_id: Digest,
    parent: Option<Digest>,
    labels: Labels,
}

/// What to unpack.
pub(crate) struct Request<'a> {
    pub snapshotter: &'a str,
    /// What the layers are applied with.
    pub differs: &'a Differs,
    pub layers: &'a [Descriptor],
    pub diff_ids: &'a [Digest],
    /// Further labels of the snapshot of each layer.
    pub labels: &'a (dyn Fn(usize) -> Labels + Sync),
    /// Where blobs come from that are not stored; nothing if all of them are.
    pub origin: Option<&'a Origin>,
    pub progress: &'a ProgressSender,
    /// Key of the manifest, for progress.
    pub parent: &'a str,
}

impl ImageService {
    /// Makes the snapshots of a stack of layers and returns the name of the top one.
    pub(crate) async fn unpack_layers(&self, ctx: &Context, request: Request<'_>) -> Result<Digest> {
        let (layers, diff_ids) = (request.layers, request.diff_ids);
        if layers.len() != diff_ids.len() {
            let text =
                format!("number of layers and diffIDs don't match: {} != {}", layers.len(), diff_ids.len());
            return Err(Error::unknown(text));
        }
        let chain = chain_ids(diff_ids);
        let top = chain.last().cloned().ok_or_else(|| Error::unknown("the image has no layers"))?;
        let layers = layers.iter().zip(diff_ids).zip(&chain).enumerate();
        let layers = layers.map(|(index, ((descriptor, diff_id), chain_id))| {
            let parent = index.checked_sub(1).and_then(|below| chain.get(below));
            let mut labels = labels::of_layer(descriptor, diff_id, chain_id, parent);
            labels.extend((request.labels)(index));
            let (diff_id, chain_id) = (diff_id.clone(), chain_id.clone());
            Layer { descriptor: descriptor.clone(), diff_id, chain_id, parent: parent.cloned(), labels }
        });
        let capabilities = self.shared.snapshots.capabilities(request.snapshotter)?;
        let rebase = self.shared.options.max_concurrent_unpacks > 1
            && capabilities.iter().any(|capability| capability == "rebase");
        let job = Arc::new(Job {
            service: self.clone(),
            ctx: ctx.clone(),
            snapshotter: request.snapshotter.to_owned(),
            differs: request.differs.clone(),
            layers: layers.collect(),
            origin: request.origin.cloned(),
            progress: request.progress.clone(),
            parent: request.parent.to_owned(),
            keys: Mutex::default(),
            threads: TaskTracker::new(),
            cancelled: Arc::new(AtomicBool::new(false)),
        });
        let cleanup = Cleanup(Arc::clone(&job));
        let result = if rebase { job.clone().in_any_order().await } else { job.clone().in_order().await };
        // Done here, not only when the guard is dropped: whoever sees the error sees no remains.
        job.clean_up().await;
        drop(cleanup);
        result.map(|()| top)
    }
}

/// One stack being unpacked.
struct Job {
    service: ImageService,
    ctx: Context,
    snapshotter: String,
    differs: Differs,
    layers: Vec<Layer>,
    origin: Option<Origin>,
    progress: ProgressSender,
    parent: String,
    /// Snapshots that are prepared and not committed.
    keys: Mutex<BTreeSet<String>>,
    /// Extractions.
    threads: TaskTracker,
    cancelled: Arc<AtomicBool>,
}

/// Removes what is left when a job is given up.
struct Cleanup(Arc<Job>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
        if !self.0.keys().is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let job = Arc::clone(&self.0);
            runtime.spawn(async move { job.clean_up().await });
        }
    }
}

/// A snapshot to be filled.
enum Prepared {
    /// The layer is there, from another image or by the snapshotter's own doing.
    Exists,
    /// The snapshotter has the content already; there is only the record to be made.
    Staged(String),
    Empty(String, Vec<Mount>),
}

/// A filled snapshot that waits for its commit; nothing if the layer was there already.
type Extracted = Option<Filled>;

struct Filled {
    key: String,
    /// Whether something was extracted, so that its digest was verified.
    applied: bool,
    /// Where on disk it lies.
    folder: Option<PathBuf>,
    /// Folders whose attributes only the layers below tell.
    implied: Vec<PathBuf>,
}

/// Where the bytes of a layer come from.
struct Feed {
    tap: Option<oneshot::Receiver<Incoming>>,
    fetch: Option<AbortOnDropHandle<Result<Fetched>>>,
}

impl Job {
    // === snapshots in any order ===

    /// Extracts all layers at once and puts them together from below.
    async fn in_any_order(self: Arc<Self>) -> Result<()> {
        let first = self.first_missing().await?;
        let mut works: Vec<Option<(Turn, AbortOnDropHandle<Result<Extracted>>)>> = Vec::new();
        for index in first..self.layers.len() {
            // What others work on is waited for later. Whoever waits for a lower layer holds only higher
            // ones, so nobody waits in a circle.
            works.push(self.flight(index).try_turn().map(|turn| {
                let job = Arc::clone(&self);
                let task = tokio::spawn(async move { job.extract(index, None, None).await });
                (turn, AbortOnDropHandle::new(task))
            }));
        }
        let mut index = first;
        let mut works = works.into_iter().peekable();
        while let Some(work) = works.next() {
            let Some(work) = work else {
                self.join(index, None).await?;
                index += 1;
                continue;
            };
            let mut run = vec![work];
            while let Some(Some(work)) = works.next_if(Option::is_some) {
                run.push(work);
            }
            index = self.finish_run(index, run).await?;
        }
        Ok(())
    }

    /// Waits for neighbouring layers, syncs them at once and commits them.
    async fn finish_run(
        &self,
        first: usize,
        run: Vec<(Turn, AbortOnDropHandle<Result<Extracted>>)>,
    ) -> Result<usize> {
        let (turns, tasks): (Vec<Turn>, Vec<_>) = run.into_iter().unzip();
        // The first failure ends the others.
        let results = tasks.into_iter().map(|task| async { task.await.map_err(panicked)? });
        let extracted: Vec<Extracted> = try_join_all(results).await?;
        sync(extracted.iter().flatten().find_map(|filled| filled.folder.clone())).await?;
        let (mut index, mut applied) = (first, Vec::new());
        for (filled, turn) in extracted.into_iter().zip(turns) {
            if let Some(filled) = filled {
                let is_synced = filled.folder.is_some() && !self.settle(index, &filled).await?;
                self.commit(index, &filled, true, is_synced).await?;
                if filled.applied {
                    applied.push(index);
                }
            }
            drop(turn);
            index += 1;
        }
        // At once: they share one change of the database.
        try_join_all(applied.into_iter().map(|index| self.note_content(index))).await?;
        Ok(index)
    }

    // === one after the other ===

    async fn in_order(self: Arc<Self>) -> Result<()> {
        let first = self.first_missing().await?;
        let mut feeds: Vec<Option<Feed>> = self.layers.iter().map(|_| None).collect();
        for index in first..self.layers.len() {
            self.join(index, Some(&mut feeds)).await?;
        }
        Ok(())
    }

    /// One layer, if it is still missing once nobody else works on it.
    async fn join(self: &Arc<Self>, index: usize, feeds: Option<&mut Vec<Option<Feed>>>) -> Result<()> {
        let _turn = self.flight(index).turn().await;
        // The layers below are there. If this one is too by now, it joins the caller's lease.
        let parent = self.layers[index].parent.clone();
        let Some(filled) = Arc::clone(self).extract(index, parent, feeds).await? else {
            return Ok(());
        };
        self.commit(index, &filled, false, false).await?;
        if filled.applied { self.note_content(index).await } else { Ok(()) }
    }

    // === one layer ===

    fn flight(&self, index: usize) -> crate::flight::Flight {
        let chain_id = self.layers[index].chain_id.clone();
        self.service.shared.unpacking.join((self.ctx.namespace.clone(), self.snapshotter.clone(), chain_id))
    }

    /// Since a snapshot keeps the ones below it, those that exist are the lowest ones. The highest of them
    /// joins the caller's lease, so that it stays until the image is recorded.
    async fn first_missing(&self) -> Result<usize> {
        for index in (0..self.layers.len()).rev() {
            if !self.exists(index).await? {
                continue;
            }
            match self.prepare(index, self.layers[index].parent.as_ref()).await? {
                Prepared::Exists => return Ok(index + 1),
                // It went at this very moment.
                Prepared::Staged(key) | Prepared::Empty(key, _) => self.remove(&key).await,
            }
        }
        Ok(0)
    }

    async fn exists(&self, index: usize) -> Result<bool> {
        let chain_id = self.layers[index].chain_id.as_str();
        match self.service.shared.snapshots.stat(&self.ctx, &self.snapshotter, chain_id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.context(format!("failed to stat snapshot {chain_id}"))),
        }
    }

    /// Fills a snapshot with a layer. Without a parent it is put onto one later.
    async fn extract(
        self: Arc<Self>,
        index: usize,
        parent: Option<Digest>,
        mut feeds: Option<&mut Vec<Option<Feed>>>,
    ) -> Result<Extracted> {
        loop {
            let (key, mounts) = match self.prepare(index, parent.as_ref()).await? {
                Prepared::Exists => return Ok(None),
                Prepared::Staged(key) => {
                    return Ok(Some(Filled { key, applied: false, folder: None, implied: Vec::new() }));
                }
                Prepared::Empty(key, mounts) => (key, mounts),
            };
            let detached = parent.is_none() && index > 0;
            let mounts = if detached { as_upper_layer(mounts) } else { mounts };
            let feed = match &mut feeds {
                None => self.feed(index),
                Some(feeds) => {
                    // Those above download meanwhile.
                    for (index, feed) in feeds.iter_mut().enumerate().skip(index) {
                        feed.get_or_insert_with(|| self.feed(index));
                    }
                    feeds.get_mut(index).and_then(Option::take).unwrap_or_else(|| self.feed(index))
                }
            };
            let folder = folder_of(&mounts);
            if let Some(applied) = self.fill(index, &key, mounts, feed).await? {
                let implied = if detached { applied.implied } else { Vec::new() };
                return Ok(Some(Filled { key, applied: true, folder, implied }));
            }
            self.remove(&key).await;
        }
    }

    async fn prepare(&self, index: usize, parent: Option<&Digest>) -> Result<Prepared> {
        let layer = &self.layers[index];
        let parent = parent.map_or("", Digest::as_str);
        for _ in 0..PREPARE_ATTEMPTS {
            let key = format!("extract-{} {}", unique(), layer.chain_id);
            self.keys().insert(key.clone());
            let prepared = self
                .service
                .shared
                .snapshots
                .prepare(&self.ctx, &self.snapshotter, &key, parent, layer.labels.clone())
                .await;
            match prepared {
                Ok(mounts) => {
                    let read_only =
                        mounts.last().is_some_and(|mount| mount.options.iter().any(|o| o == "ro"));
                    return Ok(if read_only { Prepared::Staged(key) } else { Prepared::Empty(key, mounts) });
                }
                Err(error) => {
                    self.keys().remove(&key);
                    if !error.is_already_exists() {
                        return Err(error.context(format!("failed to prepare extraction snapshot {key:?}")));
                    }
                    if self.exists(index).await? {
                        return Ok(Prepared::Exists);
                    }
                }
            }
        }
        Err(Error::not_found(format!("unable to prepare extraction snapshot for {}", layer.chain_id)))
    }

    /// Starts the download of a layer.
    fn feed(self: &Arc<Self>, index: usize) -> Feed {
        if self.origin.is_none() {
            return Feed { tap: None, fetch: None };
        }
        let (sender, tap) = oneshot::channel();
        let job = Arc::clone(self);
        let task = tokio::spawn(async move {
            let Some(origin) = &job.origin else { return Ok(Fetched::Done) };
            let descriptor = &job.layers[index].descriptor;
            let mut meter = job.meter(index);
            meter.event("waiting", 0);
            job.service.fetch_tapped(&job.ctx, origin, descriptor, &mut meter, Some(sender)).await
        });
        Feed { tap: Some(tap), fetch: Some(AbortOnDropHandle::new(task)) }
    }

    /// Extracts a layer while it arrives, and verifies it. Nothing if it has to be done again.
    async fn fill(
        &self,
        index: usize,
        key: &str,
        mounts: Vec<Mount>,
        mut feed: Feed,
    ) -> Result<Option<Applied>> {
        let layer = &self.layers[index];
        let mut incoming = match feed.tap {
            None => Some(Incoming::Stored),
            // The sender goes without a word when the fetch fails.
            Some(tap) => tap.await.ok(),
        };
        if !self.differs.is_streaming()
            && let Some(fetch) = feed.fetch.take()
        {
            if fetch.await.map_err(panicked)?? == Fetched::Stale {
                return Ok(None);
            }
            incoming = Some(Incoming::Stored);
        }
        let applied = match incoming {
            Some(incoming) => Some(self.apply(index, mounts, incoming).await),
            None => None,
        };
        let fetched = match feed.fetch {
            None => Ok(Fetched::Done),
            Some(fetch) => fetch.await.map_err(panicked)?,
        };
        // If both failed, the download says why.
        if fetched? == Fetched::Stale {
            return Ok(None);
        }
        let applied = applied.unwrap_or_else(|| Err(Error::internal("the fetch told nothing")));
        let applied = applied.with_context(|| {
            format!(
                "failed to extract layer ({} {}) to {} as {key:?}",
                layer.descriptor.media_type, layer.descriptor.digest, self.snapshotter
            )
        })?;
        if applied.digest != layer.diff_id {
            return Err(Error::unknown(format!(
                "wrong diff id {:?} calculated on extraction {:?}, desc {:?}",
                applied.digest.as_str(),
                layer.diff_id.as_str(),
                layer.descriptor.digest.as_str()
            )));
        }
        Ok(Some(applied))
    }

    async fn apply(&self, index: usize, mounts: Vec<Mount>, incoming: Incoming) -> Result<Applied> {
        let descriptor = &self.layers[index].descriptor;
        let cancelled = Arc::clone(&self.cancelled);
        let source = match incoming {
            Incoming::Arriving(arrival) => Source::new(move || {
                let cancelled = Arc::clone(&cancelled);
                Ok(Box::new(Cancellable { reader: arrival.again(), cancelled }))
            }),
            Incoming::Stored => {
                let blob = self.service.shared.content.reader(&self.ctx, &descriptor.digest);
                let blob = blob.context("failed to get reader from content store")?;
                Source::new(move || {
                    let cancelled = Arc::clone(&cancelled);
                    Ok(Box::new(Cancellable { reader: blob.stream(), cancelled }))
                })
            }
        };
        let _permit = self.service.shared.unpacks.acquire().await;
        let mut meter = self.meter(index);
        meter.event("extracting", 0);
        let mut request = ApplyRequest::new(descriptor.clone(), mounts);
        request.source = Some(source);
        request.limit = self.service.shared.options.max_unpacked_layer_size;
        let (differs, ctx) = (self.differs.clone(), self.ctx.clone());
        let task = self.threads.spawn(async move { differs.apply(&ctx, &request).await });
        let applied = task.await.map_err(panicked)??;
        meter.event("extracted", size(descriptor));
        Ok(applied)
    }

    /// Folders that a layer has entries in without listing them are like those of the layers below, which
    /// are there by now. Answers whether anything changed.
    async fn settle(&self, index: usize, filled: &Filled) -> Result<bool> {
        let layer = &self.layers[index];
        let (Some(parent), Some(folder)) = (&layer.parent, &filled.folder) else { return Ok(false) };
        if filled.implied.is_empty() {
            return Ok(false);
        }
        let key = format!("extract-{} {}", unique(), layer.chain_id);
        self.keys().insert(key.clone());
        let snapshots = &self.service.shared.snapshots;
        let below =
            snapshots.view(&self.ctx, &self.snapshotter, &key, parent.as_str(), Labels::new()).await?;
        let (folder, implied) = (folder.display().to_string(), filled.implied.clone());
        let settled = tokio::task::spawn_blocking(move || inherit(&folder, &below, &implied)).await;
        self.remove(&key).await;
        settled.map_err(panicked)?.context("failed to settle the folders of a layer")?;
        Ok(true)
    }

    async fn commit(&self, index: usize, filled: &Filled, rebase: bool, is_synced: bool) -> Result<()> {
        let layer = &self.layers[index];
        let parent = layer.parent.as_ref().filter(|_| rebase).map_or("", Digest::as_str);
        let (chain_id, labels) = (layer.chain_id.as_str(), layer.labels.clone());
        let snapshots = &self.service.shared.snapshots;
        let (snapshotter, key) = (self.snapshotter.as_str(), filled.key.as_str());
        let commit = Commit { snapshotter, name: chain_id, key, parent, labels, is_synced };
        match snapshots.commit(&self.ctx, commit).await {
            Ok(()) => {
                self.keys().remove(key);
                Ok(())
            }
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => Err(error.context(format!("failed to commit snapshot {key:?}"))),
        }
    }

    /// Notes on the blob of a layer what it is extracted to.
    async fn note_content(&self, index: usize) -> Result<()> {
        let layer = &self.layers[index];
        let label = (labels::UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
        self.service.set_labels(&self.ctx, &layer.descriptor.digest, Labels::from([label])).await
    }

    // === the end ===

    /// Removes the snapshots that did not become layers, after the threads that fill them.
    async fn clean_up(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.threads.close();
        self.threads.wait().await;
        let keys = std::mem::take(&mut *self.keys());
        for key in keys {
            self.remove(&key).await;
        }
    }

    async fn remove(&self, key: &str) {
        // Under no lease: the caller's may be gone.
        let ctx = Context::new(self.ctx.namespace.clone());
        match self.service.shared.snapshots.remove(&ctx, &self.snapshotter, key).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(key, %error, "failed to remove the snapshot of an extraction");
            }
            _ => {}
        }
        self.keys().remove(key);
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meter(&self, index: usize) -> Meter {
        let descriptor = &self.layers[index].descriptor;
        self.progress.meter(ingest_key(descriptor), Some(&self.parent), descriptor)
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::internal(error.to_string())
}

/// `<nanoseconds>-<four characters>`.
fn unique() -> String {
    use base64::Engine as _;
    let mut random = [0u8; 3];
    // Without random numbers the nanoseconds have to do.
    let _ = getrandom::fill(&mut random);
    format!("{}-{}", timestamp::nanos(), base64::engine::general_purpose::URL_SAFE.encode(random))
}

/// A layer that lies on others later has to keep its whiteouts in the form that an overlay understands.
fn as_upper_layer(mounts: Vec<Mount>) -> Vec<Mount> {
    match mounts.as_slice() {
        [mount] if mount.kind == "bind" => vec![Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: mount.target.clone(),
            options: vec![format!("upperdir={}", mount.source)],
        }],
        _ => mounts,
    }
}

fn inherit(upper: &str, below: &[Mount], implied: &[PathBuf]) -> Result<()> {
    let lower = match below {
        [mount] if mount.kind == "bind" => format!("lowerdir={}", mount.source),
        [mount] => {
            let option = mount.options.iter().find(|option| option.starts_with("lowerdir="));
            option.cloned().ok_or_else(|| Error::internal("a view without layers"))?
        }
        _ => return Ok(()),
    };
    let overlay = Mount {
        kind: "overlay".to_owned(),
        options: vec![format!("upperdir={upper}"), lower],
        ..Mount::default()
    };
    corten_diff::inherit(&overlay, implied)
}

/// The folder that mounts write to.
fn folder_of(mounts: &[Mount]) -> Option<PathBuf> {
    let mount = mounts.last()?;
    if mount.kind == "overlay" {
        return mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from);
    }
    mount.source.starts_with('/').then(|| PathBuf::from(&mount.source))
}

/// Brings to disk what was written to the file system of a folder.
async fn sync(folder: Option<PathBuf>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let synced = tokio::task::spawn_blocking(move || corten_durable::sync_file_system(&folder));
    synced.await.map_err(panicked)?.context("failed to sync the layers")
}

/// Fails once the job is given up.
struct Cancellable<R> {
    reader: R,
    cancelled: Arc<AtomicBool>,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("context canceled"));
        }
        self.reader.read(buffer)
    }
}
