//! The snapshotters of a daemon: records, and what keeps the trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_events::Exchange;
use corten_metadata::{Database, Kind, NewSnapshot, SnapshotRecord, SnapshotRecords, Sweeper};
use corten_types::{Context, Error, Filter, Labels, Mount, Result};

use crate::backend::{Backend, Usage};
use crate::local::Local;
use crate::proxied::Proxied;
use crate::proxy::Proxy;

/// Labels of a snapshot that its snapshotter may see.
const SEEN_PREFIX: &str = "containerd.io/snapshot/";
/// Another one: it names a snapshot whose existence makes a preparation needless.
pub(crate) const REFERENCE: &str = "containerd.io/snapshot.ref";

/// All snapshotters. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    records: SnapshotRecords,
    targets: BTreeMap<String, Target>,
}

/// Who keeps the trees of a snapshotter.
#[derive(Debug)]
enum Target {
    /// This daemon.
    Local(Local),
    /// Another process.
    Proxied(Proxied),
}

/// A commit of the active snapshot `key` as `name`.
#[derive(Clone, Debug, Default)]
pub struct Commit<'a> {
    /// Name of the snapshotter.
    pub snapshotter: &'a str,
    /// What it is called from then on.
    pub name: &'a str,
    /// The active snapshot.
    pub key: &'a str,
    /// Given only where the snapshot has none yet, else empty.
    pub parent: &'a str,
    /// Those of the committed one.
    pub labels: Labels,
    /// The caller has brought its data to the disk.
    pub is_synced: bool,
}

pub(crate) fn is_seen(label: &str) -> bool {
    label.starts_with(SEEN_PREFIX) || label == REFERENCE
}

/// The labels that a snapshotter may see.
pub(crate) fn seen(labels: &Labels) -> Labels {
    let seen = labels.iter().filter(|(key, _)| is_seen(key));
    seen.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Snapshots {
    /// Over a database and the directories of some backends.
    ///
    /// # Errors
    /// Those of the file system and the database.
    pub fn new(database: &Database, exchange: &Exchange, backends: Vec<Arc<dyn Backend>>) -> Result<Self> {
        Self::with_proxies(database, exchange, backends, Vec::new())
    }

    /// The same, with snapshotters in other processes.
    ///
    /// # Errors
    /// Those of the file system and the database; AlreadyExists for a name that is taken.
    pub fn with_proxies(
        database: &Database,
        exchange: &Exchange,
        backends: Vec<Arc<dyn Backend>>,
        proxies: Vec<Proxy>,
    ) -> Result<Self> {
        let records = SnapshotRecords::new(database.clone(), exchange.clone());
        let mut targets = BTreeMap::new();
        for backend in backends {
            let name = backend.name().to_owned();
            targets.insert(name, Target::Local(Local::open(backend, &records)?));
        }
        for proxy in proxies {
            let name = proxy.name.clone();
            if targets.insert(name.clone(), Target::Proxied(Proxied::new(proxy, &records))).is_some() {
                return Err(Error::already_exists(format!("snapshotter {name:?}")));
            }
        }
        Ok(Self { shared: Arc::new(Shared { records, targets }) })
    }

    /// Names of the snapshotters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.targets.keys().map(String::as_str)
    }

    /// What a snapshotter can do beyond the rule.
    ///
    /// # Errors
    /// InvalidArgument for an unknown snapshotter.
    pub fn capabilities(&self, snapshotter: &str) -> Result<Vec<String>> {
        Ok(match self.target(snapshotter)? {
            Target::Local(local) => local.backend.capabilities(),
            Target::Proxied(proxied) => proxied.proxy.capabilities.clone(),
        })
    }

    fn target(&self, name: &str) -> Result<&Target> {
        if name.is_empty() {
            return Err(Error::invalid_argument("snapshotter argument missing"));
        }
        let unknown = || Error::invalid_argument(format!("snapshotter not loaded: {name}"));
        self.shared.targets.get(name).ok_or_else(unknown)
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
        let new = NewSnapshot {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            kind,
            labels,
        };
        match self.target(snapshotter)? {
            Target::Local(local) => local.create(ctx, new).await,
            Target::Proxied(proxied) => proxied.create(ctx, new).await,
        }
    }

    /// The mounts that show an active snapshot or a view.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed one.
    pub async fn mounts(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        match self.target(snapshotter)? {
            Target::Local(local) => local.mounts(ctx, snapshotter, key).await,
            Target::Proxied(proxied) => proxied.mounts(ctx, key).await,
        }
    }

    /// Turns an active snapshot into a parent for others. Its data is on the disk before its record says so.
    ///
    /// # Errors
    /// NotFound, AlreadyExists, FailedPrecondition; InvalidArgument for a `parent` where there is one.
    pub async fn commit(&self, ctx: &Context, commit: Commit<'_>) -> Result<()> {
        match self.target(commit.snapshotter)? {
            Target::Local(local) => local.commit(ctx, commit).await,
            Target::Proxied(proxied) => proxied.commit(ctx, commit).await,
        }
    }

    /// Removes a snapshot without children; its directory goes with a collection.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition with children.
    pub async fn remove(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<()> {
        self.target(snapshotter)?;
        self.shared.records.remove(ctx, snapshotter, key).await
    }

    /// A snapshot.
    ///
    /// # Errors
    /// NotFound.
    pub async fn stat(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<SnapshotRecord> {
        match self.target(snapshotter)? {
            Target::Local(local) => Ok(local.described(self.shared.records.stat(ctx, snapshotter, key)?)),
            Target::Proxied(proxied) => proxied.stat(ctx, key).await,
        }
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
        match self.target(snapshotter)? {
            Target::Local(local) => {
                let record = self.shared.records.update(ctx, snapshotter, key, labels, paths).await?;
                Ok(local.described(record))
            }
            Target::Proxied(proxied) => proxied.update(ctx, key, labels, paths).await,
        }
    }

    /// The snapshots that pass, by name.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub async fn list(
        &self,
        ctx: &Context,
        snapshotter: &str,
        filters: &[String],
    ) -> Result<Vec<SnapshotRecord>> {
        let target = self.target(snapshotter)?;
        let filter = Filter::parse(filters)?;
        match target {
            Target::Local(local) => {
                let records = self.shared.records.list(ctx, snapshotter, &[])?;
                let described = records.into_iter().map(|record| local.described(record));
                Ok(described.filter(|record| filter.matches(record)).collect())
            }
            Target::Proxied(proxied) => proxied.list(ctx, &filter).await,
        }
    }

    /// What a snapshot itself takes on disk, without its parents.
    ///
    /// # Errors
    /// NotFound.
    pub async fn usage(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<Usage> {
        match self.target(snapshotter)? {
            Target::Local(local) => {
                let record = self.shared.records.stat(ctx, snapshotter, key)?;
                local.usage(ctx, record).await
            }
            Target::Proxied(proxied) => proxied.usage(ctx, key).await,
        }
    }
}

#[async_trait::async_trait]
impl Sweeper for Snapshots {
    async fn sweep(&self) -> Result<()> {
        for target in self.shared.targets.values() {
            match target {
                Target::Local(local) => local.sweep().await?,
                Target::Proxied(proxied) => proxied.sweep().await,
            }
        }
        Ok(())
    }
}
