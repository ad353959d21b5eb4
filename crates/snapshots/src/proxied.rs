//! Snapshots that a snapshotter in another process keeps, under keys of its own (spec 01 §11, §11.1).
//!
//! A key is reserved before the snapshotter hears of it, and recorded before it is given up: after a crash
//! it may have more than the records know, never less, and the collector removes what is too much.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use corten_metadata::{Found, Kind, NewSnapshot, Place, SnapshotRecord, SnapshotRecords};
use corten_types::{Context, Error, ErrorClass, Filter, Labels, Mount, Result, ResultExt};
use tokio::sync::RwLock;

use crate::backend::Usage;
use crate::proxy::{Info, Proxy};
use crate::service::{Commit, REFERENCE, is_seen, seen};

/// A sweep does not wait longer than this for another process.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records and a snapshotter that keeps its own.
#[derive(Debug)]
pub(crate) struct Proxied {
    pub proxy: Proxy,
    records: SnapshotRecords,
    /// Keys whose records are not written yet: a sweep leaves them alone.
    pending: Mutex<BTreeSet<String>>,
    /// Held while a snapshot may be adopted whose key is known only afterwards.
    adopting: RwLock<()>,
}

/// A key on its way to a record.
struct Pending<'a> {
    proxied: &'a Proxied,
    key: String,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.proxied.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Proxied {
    pub(crate) fn new(proxy: Proxy, records: &SnapshotRecords) -> Self {
        Self { proxy, records: records.clone(), pending: Mutex::default(), adopting: RwLock::default() }
    }

    fn record(&self, ctx: &Context, name: &str) -> Result<SnapshotRecord> {
        self.records.stat(ctx, &self.proxy.name, name)
    }

    /// The snapshotter's key of a parent.
    fn parent(&self, ctx: &Context, name: &str) -> Result<String> {
        if name.is_empty() { Ok(String::new()) } else { Ok(self.record(ctx, name)?.key) }
    }

    pub(crate) async fn create(&self, ctx: &Context, new: NewSnapshot) -> Result<Vec<Mount>> {
        self.records.check_new(ctx, &new).await?;
        let parent = self.parent(ctx, &new.parent)?;
        let key = self.records.reserve(ctx, &self.proxy.name, &new.key).await?;
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        let pending = Pending { proxied: self, key };
        let target = new.labels.get(REFERENCE).cloned();
        let adopting = match &target {
            Some(_) => Some(self.adopting.read().await),
            None => None,
        };
        let (snapshotter, labels) = (&self.proxy.snapshotter, seen(&new.labels));
        let made = match new.kind {
            Kind::View => snapshotter.view(ctx, &pending.key, &parent, labels).await,
            _ => snapshotter.prepare(ctx, &pending.key, &parent, labels).await,
        };
        match (made, target) {
            (Ok(mounts), _) => {
                let recorded = self.records.create(ctx, new, Place::Key(pending.key.clone())).await;
                if let Err(error) = recorded {
                    snapshotter.remove(&pending.key).await.ok();
                    return Err(error);
                }
                Ok(mounts)
            }
            (Err(error), Some(target)) if error.is_already_exists() => {
                self.adopt(ctx, new, &target, &parent).await?;
                drop(adopting);
                Err(Error::already_exists(format!("target snapshot {target:?} from snapshotter")))
            }
            // The key is new: nobody may take this for a snapshot of that name.
            (Err(error), None) if error.is_already_exists() => {
                Err(Error::unknown(format!("unexpected error from snapshotter: {}", error.message())))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Records what the snapshotter says it has already.
    async fn adopt(&self, ctx: &Context, new: NewSnapshot, target: &str, parent: &str) -> Result<()> {
        let filter = format!("labels.\"{REFERENCE}\"=={target},parent=={parent:?}");
        let infos = self.proxy.snapshotter.list(Some(ctx), vec![filter]).await;
        let is_target = |info: &Info| {
            // Not every snapshotter heeds the filter.
            let named = info.labels.get(REFERENCE).is_some_and(|name| name == target);
            info.kind == Kind::Committed && info.parent == parent && named
        };
        let info = infos.context("failed walking backend snapshots")?.into_iter().find(is_target);
        let missing = || Error::not_found(format!("target snapshot {target:?} in backend"));
        let info = info.ok_or_else(missing)?;
        let mut labels = info.labels;
        labels.extend(new.labels);
        let new = NewSnapshot { key: target.to_owned(), kind: Kind::Committed, labels, ..new };
        let Info { key, parent, created_at, updated_at, .. } = info;
        self.records.adopt(ctx, new, Found { key, parent, created_at, updated_at }).await
    }

    pub(crate) async fn mounts(&self, ctx: &Context, name: &str) -> Result<Vec<Mount>> {
        let record = self.record(ctx, name)?;
        self.proxy.snapshotter.mounts(ctx, &record.key).await
    }

    pub(crate) async fn commit(&self, ctx: &Context, commit: Commit<'_>) -> Result<()> {
        let Commit { snapshotter, name, key, parent, labels, is_synced: _ } = commit;
        let record = self.records.committable(ctx, snapshotter, name, key, parent)?;
        if !self.was_committed(ctx, &record).await? {
            let below = self.parent(ctx, parent)?;
            let given = self.records.intend(ctx, snapshotter, name, key).await?;
            self.proxy.snapshotter.commit(ctx, &given, &record.key, &below, seen(&labels)).await?;
        }
        self.records.commit(ctx, snapshotter, name, key, parent, labels, (0, 0)).await
    }

    /// Whether an earlier commit got as far as the snapshotter, but not back to the record.
    async fn was_committed(&self, ctx: &Context, record: &SnapshotRecord) -> Result<bool> {
        if record.committing.is_empty() {
            return Ok(false);
        }
        match self.proxy.snapshotter.stat(ctx, &record.committing).await {
            Ok(info) => Ok(info.kind == Kind::Committed),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn stat(&self, ctx: &Context, name: &str) -> Result<SnapshotRecord> {
        let record = self.record(ctx, name)?;
        match self.proxy.snapshotter.stat(ctx, &record.key).await {
            Err(error) if error.is_not_found() && !record.committing.is_empty() => {
                let info = self.proxy.snapshotter.stat(ctx, &record.committing).await.map_err(|_| error)?;
                Ok(half_committed(record, info))
            }
            info => Ok(merged(record, info?)),
        }
    }

    pub(crate) async fn update(
        &self,
        ctx: &Context,
        name: &str,
        labels: Labels,
        paths: Vec<String>,
    ) -> Result<SnapshotRecord> {
        let record = self.records.update(ctx, &self.proxy.name, name, labels, paths.clone()).await?;
        let all = paths.is_empty();
        let is_told = |path: &String| path.strip_prefix("labels.").is_none_or(is_seen);
        let told: Vec<String> = paths.into_iter().filter(is_told).collect();
        let snapshotter = &self.proxy.snapshotter;
        let info = if all || !told.is_empty() {
            snapshotter.update(ctx, &record.key, seen(&record.labels), told).await?
        } else {
            snapshotter.stat(ctx, &record.key).await?
        };
        Ok(merged(record, info))
    }

    /// What the snapshotter has lost is left out.
    pub(crate) async fn list(&self, ctx: &Context, filter: &Filter) -> Result<Vec<SnapshotRecord>> {
        let records = self.records.list(ctx, &self.proxy.name, &[])?;
        if records.is_empty() {
            return Ok(records);
        }
        let infos = self.proxy.snapshotter.list(Some(ctx), Vec::new()).await?;
        let infos: BTreeMap<String, Info> = infos.into_iter().map(|info| (info.key.clone(), info)).collect();
        let shown = records.into_iter().filter_map(|record| match infos.get(&record.key) {
            Some(info) => Some(merged(record, info.clone())),
            None => infos.get(&record.committing).map(|info| half_committed(record, info.clone())),
        });
        Ok(shown.filter(|record| filter.matches(record)).collect())
    }

    pub(crate) async fn usage(&self, ctx: &Context, name: &str) -> Result<Usage> {
        let record = self.record(ctx, name)?;
        self.proxy.snapshotter.usage(ctx, &record.key).await
    }

    /// Has removed what no record knows. A snapshotter that is not there does not keep others from theirs.
    pub(crate) async fn sweep(&self) {
        let swept = tokio::time::timeout(PATIENCE, self.remove_unknown()).await;
        let swept = swept.unwrap_or_else(|_| Err(Error::unavailable("it takes too long")));
        if let Err(error) = swept {
            tracing::warn!(snapshotter = self.proxy.name, %error, "snapshots could not be removed yet");
        }
    }

    async fn remove_unknown(&self) -> Result<()> {
        let snapshotter = &self.proxy.snapshotter;
        let infos = snapshotter.list(None, Vec::new()).await?;
        // Those that a preparation may adopt at this moment stay until there is none.
        let alone = self.adopting.try_write().ok();
        // In this order: what is not pending any more has a record by then.
        let mut known = self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.extend(self.records.all_keys(&self.proxy.name)?);
        for info in removable(infos, |info| {
            known.contains(&info.key) || (alone.is_none() && info.labels.contains_key(REFERENCE))
        }) {
            if let Err(error) = snapshotter.remove(&info.key).await
                && !error.is_not_found()
            {
                tracing::warn!(key = info.key, %error, "a snapshot could not be removed yet");
            }
        }
        match snapshotter.cleanup().await {
            Err(error) if error.class() != ErrorClass::NotImplemented => Err(error),
            _ => Ok(()),
        }
    }
}

/// The snapshots that are not kept, nor below one that is: children first.
fn removable(infos: Vec<Info>, is_kept: impl Fn(&Info) -> bool) -> Vec<Info> {
    let parents: BTreeMap<String, String> =
        infos.iter().map(|info| (info.key.clone(), info.parent.clone())).collect();
    let above = |key: &str| -> Vec<String> {
        // Itself and all below it, bounded whatever the snapshotter says.
        let chain = std::iter::successors(Some(key.to_owned()), |key| parents.get(key).cloned());
        chain.take_while(|key| !key.is_empty()).take(parents.len()).collect()
    };
    let mut kept = BTreeSet::new();
    for info in infos.iter().filter(|info| is_kept(info)) {
        kept.extend(above(&info.key));
    }
    let mut gone: Vec<(usize, Info)> = infos
        .into_iter()
        .filter(|info| !kept.contains(&info.key))
        .map(|info| (above(&info.key).len(), info))
        .collect();
    gone.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    gone.into_iter().map(|(_, info)| info).collect()
}

/// Labels of both, the record's first; the kind is the snapshotter's.
fn merged(mut record: SnapshotRecord, info: Info) -> SnapshotRecord {
    for (key, value) in info.labels {
        record.labels.entry(key).or_insert(value);
    }
    record.kind = info.kind;
    record
}

/// The snapshotter has committed it, but whoever asked has not heard of it: it is what it was, and the commit that
/// is asked for again finds itself done.
fn half_committed(record: SnapshotRecord, info: Info) -> SnapshotRecord {
    let kind = record.kind;
    SnapshotRecord { kind, ..merged(record, info) }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_nobody_needs_goes_from_the_top() {
        let info = |key: &str, parent: &str| Info {
            key: key.into(),
            parent: parent.into(),
            kind: Kind::Committed,
            labels: Labels::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        let infos = || {
            ["a/", "b/a", "c/b", "d/b", "e/", "f/e", "loop/loop"].map(|pair| {
                let (key, parent) = pair.split_once('/').unwrap();
                info(key, parent)
            })
        };
        let gone = |kept: &[&str]| -> String {
            let gone = removable(infos().to_vec(), |info| kept.contains(&info.key.as_str()));
            gone.iter().map(|info| info.key.clone()).filter(|key| key != "loop").collect()
        };
        assert_eq!(gone(&["c", "f"]), "d");
        assert_eq!(gone(&["b"]), "cdfe");
        assert_eq!(gone(&["a", "e"]), "cdbf");
    }
}
