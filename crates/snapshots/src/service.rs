//! The snapshotters of a daemon: records and directories together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use corten_events::Exchange;
use corten_metadata::{Database, Kind, NewSnapshot, SnapshotRecord, SnapshotRecords, Sweeper};
use corten_types::{Context, Error, Filter, Labels, Mount, Result};

use crate::backend::{Backend, Snapshot, Usage};
use crate::mend::mend;

/// Labels of a snapshot that its backend may see.
const SEEN_PREFIX: &str = "containerd.io/snapshot/";
const SEEN: &str = "containerd.io/snapshot.ref";

/// All snapshotters. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    records: SnapshotRecords,
    backends: BTreeMap<String, Snapshotter>,
}

#[derive(Debug)]
struct Snapshotter {
    backend: Arc<dyn Backend>,
    /// The number of the next directory.
    next: AtomicU64,
    /// Directories whose records are not written yet: a sweep leaves them alone.
    pending: Mutex<std::collections::BTreeSet<u64>>,
}

/// A directory on its way to a record.
struct Pending<'a> {
    snapshotter: &'a Snapshotter,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.snapshotter.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Snapshotter {
    fn reserve(&self) -> Pending<'_> {
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Pending { snapshotter: self, id }
    }

    /// A record with the labels that the backend adds; its own come first.
    fn described(&self, mut record: SnapshotRecord) -> SnapshotRecord {
        for (key, value) in self.backend.labels(record.id) {
            record.labels.entry(key).or_insert(value);
        }
        record
    }
}

/// The labels that a backend may see.
pub(crate) fn seen(labels: &Labels) -> Labels {
    let seen = labels.iter().filter(|(key, _)| key.starts_with(SEEN_PREFIX) || *key == SEEN);
    seen.map(|(key, value)| (key.clone(), value.clone())).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("snapshotter: {error}")))?
}

impl Snapshots {
    /// Over a database and the directories of some backends.
    ///
    /// # Errors
    /// Those of the file system and the database.
    pub fn new(database: &Database, exchange: &Exchange, backends: Vec<Arc<dyn Backend>>) -> Result<Self> {
        let records = SnapshotRecords::new(database.clone(), exchange.clone());
        let mut all = BTreeMap::new();
        for backend in backends {
            mend(&records, backend.as_ref())?;
            let on_disk = backend.ids()?.last().copied().unwrap_or(0);
            let known = records.all_ids(backend.name())?.last().copied().unwrap_or(0);
            let next = AtomicU64::new(on_disk.max(known) + 1);
            all.insert(backend.name().to_owned(), Snapshotter { backend, next, pending: Mutex::default() });
        }
        Ok(Self { shared: Arc::new(Shared { records, backends: all }) })
    }

    /// Names of the snapshotters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.backends.keys().map(String::as_str)
    }

    /// What a snapshotter can do beyond the rule.
    ///
    /// # Errors
    /// InvalidArgument for an unknown snapshotter.
    pub fn capabilities(&self, snapshotter: &str) -> Result<Vec<String>> {
        Ok(self.backend(snapshotter)?.backend.capabilities())
    }

    fn backend(&self, name: &str) -> Result<&Snapshotter> {
        if name.is_empty() {
            return Err(Error::invalid_argument("snapshotter argument missing"));
        }
        let unknown = || Error::invalid_argument(format!("snapshotter not loaded: {name}"));
        self.shared.backends.get(name).ok_or_else(unknown)
    }

    /// A writable snapshot over a committed one, or over nothing.
    ///
    /// # Errors
    /// AlreadyExists; NotFound and InvalidArgument for the parent.
    pub async fn prepare(
        &self,
        ctx: &Context,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(ctx, snapshotter, key, parent, labels, Kind::Active).await
    }

    /// The same, read only.
    ///
    /// # Errors
    /// As [`Snapshots::prepare`].
    pub async fn view(
        &self,
        ctx: &Context,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(ctx, snapshotter, key, parent, labels, Kind::View).await
    }

    async fn create(
        &self,
        ctx: &Context,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        kind: Kind,
    ) -> Result<Vec<Mount>> {
        let target = self.backend(snapshotter)?;
        let new = NewSnapshot {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            kind,
            labels: labels.clone(),
        };
        self.shared.records.check_new(ctx, &new).await?;
        let parents = self.shared.records.chain(ctx, snapshotter, parent)?;
        let pending = target.reserve();
        let id = pending.id;
        let (backend, snapshot) =
            (Arc::clone(&target.backend), Snapshot { id, parents, kind, labels: seen(&labels) });
        let mounts = blocking(move || {
            backend.create(&snapshot)?;
            backend.mounts(&snapshot).inspect_err(|_| drop(backend.remove(id)))
        })
        .await?;
        if let Err(error) = self.shared.records.create(ctx, new, id).await {
            let backend = Arc::clone(&target.backend);
            blocking(move || backend.remove(id)).await.ok();
            return Err(error);
        }
        Ok(mounts)
    }

    /// The mounts that show an active snapshot or a view.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed one.
    pub async fn mounts(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let target = self.backend(snapshotter)?;
        let record = self.shared.records.mountable(ctx, snapshotter, key)?;
        let snapshot = self.snapshot(ctx, &record)?;
        let backend = Arc::clone(&target.backend);
        blocking(move || backend.mounts(&snapshot)).await
    }

    /// A record as a backend sees it.
    fn snapshot(&self, ctx: &Context, record: &SnapshotRecord) -> Result<Snapshot> {
        let parents = self.shared.records.chain(ctx, &record.snapshotter, &record.parent)?;
        Ok(Snapshot { id: record.id, parents, kind: record.kind, labels: seen(&record.labels) })
    }

    /// Turns an active snapshot into a parent for others. Its data is on the disk before its record says so.
    ///
    /// # Errors
    /// NotFound, AlreadyExists, FailedPrecondition; InvalidArgument for a `parent` where there is one.
    pub async fn commit(
        &self,
        ctx: &Context,
        snapshotter: &str,
        name: &str,
        key: &str,
        labels: Labels,
        parent: &str,
    ) -> Result<()> {
        let target = self.backend(snapshotter)?;
        let records = &self.shared.records;
        let mut record = records.committable(ctx, snapshotter, name, key, parent)?;
        if !parent.is_empty() {
            parent.clone_into(&mut record.parent);
        }
        let snapshot = self.snapshot(ctx, &record)?;
        let backend = Arc::clone(&target.backend);
        let usage = blocking(move || backend.commit(&snapshot)).await?;
        records.commit(ctx, snapshotter, name, key, parent, labels, (usage.size, usage.inodes)).await?;
        let backend = Arc::clone(&target.backend);
        blocking(move || {
            backend.committed(record.id);
            Ok(())
        })
        .await
    }

    /// Removes a snapshot without children; its directory goes with a collection.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition with children.
    pub async fn remove(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<()> {
        self.backend(snapshotter)?;
        self.shared.records.remove(ctx, snapshotter, key).await
    }

    /// A snapshot.
    ///
    /// # Errors
    /// NotFound.
    #[expect(clippy::unused_async, reason = "a snapshotter may be another process")]
    pub async fn stat(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<SnapshotRecord> {
        let target = self.backend(snapshotter)?;
        Ok(target.described(self.shared.records.stat(ctx, snapshotter, key)?))
    }

    /// Changes labels: those that `paths` names, or all when it names none.
    ///
    /// # Errors
    /// NotFound, InvalidArgument.
    pub async fn update(
        &self,
        ctx: &Context,
        snapshotter: &str,
        key: &str,
        labels: Labels,
        paths: Vec<String>,
    ) -> Result<SnapshotRecord> {
        let target = self.backend(snapshotter)?;
        Ok(target.described(self.shared.records.update(ctx, snapshotter, key, labels, paths).await?))
    }

    /// The snapshots that pass, by name.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    #[expect(clippy::unused_async, reason = "a snapshotter may be another process")]
    pub async fn list(
        &self,
        ctx: &Context,
        snapshotter: &str,
        filters: &[String],
    ) -> Result<Vec<SnapshotRecord>> {
        let target = self.backend(snapshotter)?;
        let filter = Filter::parse(filters)?;
        let records = self.shared.records.list(ctx, snapshotter, &[])?;
        let described = records.into_iter().map(|record| target.described(record));
        Ok(described.filter(|record| filter.matches(record)).collect())
    }

    /// What a snapshot itself takes on disk, without its parents.
    ///
    /// # Errors
    /// NotFound.
    pub async fn usage(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<Usage> {
        let target = self.backend(snapshotter)?;
        let snapshot = self.shared.records.stat(ctx, snapshotter, key)?;
        match snapshot.kind {
            Kind::View => Ok(Usage::default()),
            Kind::Committed => Ok(Usage { size: snapshot.size, inodes: snapshot.inodes }),
            Kind::Active => {
                let (backend, snapshot) = (Arc::clone(&target.backend), self.snapshot(ctx, &snapshot)?);
                blocking(move || backend.usage(&snapshot)).await
            }
        }
    }
}

#[async_trait::async_trait]
impl Sweeper for Snapshots {
    async fn sweep(&self) -> Result<()> {
        for (name, target) in &self.shared.backends {
            // The disk first, then what is on its way, then the records: whatever is made meanwhile is
            // in one of the two later.
            let on_disk = target.backend.ids()?;
            let pending = target.pending.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let known = self.shared.records.all_ids(name)?;
            let unknown: Vec<u64> =
                on_disk.into_iter().filter(|id| !known.contains(id) && !pending.contains(id)).collect();
            let backend = Arc::clone(&target.backend);
            blocking(move || {
                backend.clean()?;
                for id in unknown {
                    if let Err(error) = backend.remove(id) {
                        tracing::warn!(id, %error, "a snapshot's directory could not be removed yet");
                    }
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
