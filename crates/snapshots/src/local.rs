//! Snapshots whose directories a backend of this daemon keeps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use corten_metadata::{Kind, NewSnapshot, Place, SnapshotRecord, SnapshotRecords};
use corten_types::{Context, Error, Mount, Result};

use crate::backend::{Backend, Snapshot, Usage};
use crate::mend::mend;
use crate::service::Commit;

/// Records and a backend.
#[derive(Debug)]
pub(crate) struct Local {
    pub backend: Arc<dyn Backend>,
    records: SnapshotRecords,
    /// The number of the next directory.
    next: AtomicU64,
    /// Directories whose records are not written yet: a sweep leaves them alone.
    pending: Mutex<BTreeSet<u64>>,
}

/// A directory on its way to a record.
struct Pending<'a> {
    local: &'a Local,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.local.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("snapshotter: {error}")))?
}

impl Local {
    pub(crate) fn open(backend: Arc<dyn Backend>, records: &SnapshotRecords) -> Result<Self> {
        mend(records, backend.as_ref())?;
        let on_disk = backend.ids()?.last().copied().unwrap_or(0);
        let known = records.all_ids(backend.name())?.last().copied().unwrap_or(0);
        let next = AtomicU64::new(on_disk.max(known) + 1);
        Ok(Self { backend, records: records.clone(), next, pending: Mutex::default() })
    }

    fn reserve(&self) -> Pending<'_> {
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Pending { local: self, id }
    }

    /// A record as the backend sees it.
    fn snapshot(&self, ctx: &Context, record: &SnapshotRecord) -> Result<Snapshot> {
        let parents = self.records.chain(ctx, &record.snapshotter, &record.parent)?;
        Ok(Snapshot::new(record.id, parents, record.kind, &record.labels))
    }

    /// A record with the labels that the backend adds; its own come first.
    pub(crate) fn described(&self, mut record: SnapshotRecord) -> SnapshotRecord {
        for (key, value) in self.backend.labels(record.id) {
            record.labels.entry(key).or_insert(value);
        }
        record
    }

    pub(crate) async fn create(&self, ctx: &Context, new: NewSnapshot) -> Result<Vec<Mount>> {
        self.records.check_new(ctx, &new).await?;
        let parents = self.records.chain(ctx, &new.snapshotter, &new.parent)?;
        let pending = self.reserve();
        let id = pending.id;
        let snapshot = Snapshot::new(id, parents, new.kind, &new.labels);
        let backend = Arc::clone(&self.backend);
        let mounts = blocking(move || {
            backend.create(&snapshot)?;
            backend.mounts(&snapshot).inspect_err(|_| drop(backend.remove(id)))
        })
        .await?;
        if let Err(error) = self.records.create(ctx, new, Place::Id(id)).await {
            let backend = Arc::clone(&self.backend);
            blocking(move || backend.remove(id)).await.ok();
            return Err(error);
        }
        Ok(mounts)
    }

    pub(crate) async fn mounts(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let record = self.records.mountable(ctx, snapshotter, key)?;
        let snapshot = self.snapshot(ctx, &record)?;
        let backend = Arc::clone(&self.backend);
        blocking(move || backend.mounts(&snapshot)).await
    }

    pub(crate) async fn commit(&self, ctx: &Context, commit: Commit<'_>) -> Result<()> {
        let Commit { snapshotter, name, key, parent, labels, is_synced } = commit;
        let mut record = self.records.committable(ctx, snapshotter, name, key, parent)?;
        if !parent.is_empty() {
            parent.clone_into(&mut record.parent);
        }
        let snapshot = Snapshot { is_synced, ..self.snapshot(ctx, &record)? };
        let backend = Arc::clone(&self.backend);
        let usage = blocking(move || backend.commit(&snapshot)).await;
        let usage = usage.map_err(|error| self.explain(ctx, &record, "commit", error))?;
        let usage = (usage.size, usage.inodes);
        self.records.commit(ctx, snapshotter, name, key, parent, labels, usage).await?;
        let backend = Arc::clone(&self.backend);
        blocking(move || {
            backend.committed(record.id);
            Ok(())
        })
        .await
    }

    pub(crate) async fn usage(&self, ctx: &Context, record: SnapshotRecord) -> Result<Usage> {
        match record.kind {
            Kind::View => Ok(Usage::default()),
            Kind::Committed => Ok(Usage { size: record.size, inodes: record.inodes }),
            Kind::Active => {
                let (backend, snapshot) = (Arc::clone(&self.backend), self.snapshot(ctx, &record)?);
                let usage = blocking(move || backend.usage(&snapshot)).await;
                usage.map_err(|error| self.explain(ctx, &record, "measure", error))
            }
        }
    }

    /// What a failure of the backend means: a snapshot that was removed meanwhile is simply not there.
    fn explain(&self, ctx: &Context, record: &SnapshotRecord, what: &str, error: Error) -> Error {
        match self.records.stat(ctx, &record.snapshotter, &record.name) {
            Err(gone) if gone.is_not_found() => gone,
            Ok(now) if now.id != record.id => {
                Error::not_found(format!("snapshot {} does not exist", record.name))
            }
            _ => error.context(format!("failed to {what} snapshot {}", record.name)),
        }
    }

    /// Removes what no record knows.
    pub(crate) async fn sweep(&self) -> Result<()> {
        // The disk first, then what is on its way, then the records: whatever is made meanwhile is in one
        // of the two later.
        let on_disk = self.backend.ids()?;
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = self.records.all_ids(self.backend.name())?;
        let unknown: Vec<u64> =
            on_disk.into_iter().filter(|id| !known.contains(id) && !pending.contains(id)).collect();
        let backend = Arc::clone(&self.backend);
        blocking(move || {
            backend.clean()?;
            for id in unknown {
                if let Err(error) = backend.remove(id) {
                    tracing::warn!(id, %error, "a snapshot's directory could not be removed yet");
                }
            }
            Ok(())
        })
        .await
    }
}
