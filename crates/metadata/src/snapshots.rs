//! Snapshot records (spec 01 §11). Directories are the snapshotters'.

use std::collections::BTreeSet;
use std::time::SystemTime;

use corten_api::events as told;
use corten_events::Exchange;
use corten_types::{Context, Error, Filter, Labels, Namespace, Result, ResultExt, labels};

use crate::database::Database;
use crate::keys::{self, Key};
use crate::mask::apply_map;
use crate::records::{self, count, get, put, scan};
use crate::snapshot::{Found, Kind, NewSnapshot, Place, SnapshotRecord, full_key, sequence_of};
use crate::transaction::{Reader, Tx};
use crate::{leases, namespaces};

/// Names a snapshot whose existence makes a preparation needless (spec 01 §11.1).
const TARGET: &str = "containerd.io/snapshot.ref";
const CREATING: &str = "failed to create snapshot";

/// The snapshot records of the daemon.
#[derive(Clone, Debug)]
pub struct SnapshotRecords {
    database: Database,
    exchange: Exchange,
}

fn key(ctx: &Context, snapshotter: &str, name: &str) -> Result<Key> {
    Key::new(keys::Kind::Snapshot, &[ctx.namespace.as_str(), snapshotter, name])
}

fn child_key(ctx: &Context, snapshotter: &str, parent: &str, child: &str) -> Result<Key> {
    Key::new(keys::Kind::Child, &[ctx.namespace.as_str(), snapshotter, parent, child])
}

fn find(
    reader: &impl Reader,
    ctx: &Context,
    snapshotter: &str,
    name: &str,
) -> Result<Option<SnapshotRecord>> {
    let record = get(reader, &key(ctx, snapshotter, name)?)?;
    Ok(record.map(|record| SnapshotRecord::from_record(name, snapshotter, record)))
}

fn existing(reader: &impl Reader, ctx: &Context, snapshotter: &str, name: &str) -> Result<SnapshotRecord> {
    let missing = || Error::not_found(format!("snapshot {name} does not exist"));
    find(reader, ctx, snapshotter, name)?.ok_or_else(missing)
}

fn store(tx: &mut Tx<'_>, ctx: &Context, snapshot: &SnapshotRecord) -> Result<()> {
    put(tx, &key(ctx, &snapshot.snapshotter, &snapshot.name)?, &snapshot.record());
    if !snapshot.parent.is_empty() {
        let link = child_key(ctx, &snapshot.snapshotter, &snapshot.parent, &snapshot.name)?;
        put(tx, &link, &records::Number::default());
    }
    Ok(())
}

fn erase(tx: &mut Tx<'_>, ctx: &Context, snapshot: &SnapshotRecord) -> Result<()> {
    tx.remove(&key(ctx, &snapshot.snapshotter, &snapshot.name)?);
    if !snapshot.parent.is_empty() {
        tx.remove(&child_key(ctx, &snapshot.snapshotter, &snapshot.parent, &snapshot.name)?);
    }
    Ok(())
}

fn resource(snapshotter: &str) -> String {
    format!("snapshots/{snapshotter}")
}

/// Every name that a snapshot gets takes a number of its namespace.
fn next_sequence(tx: &mut Tx<'_>, ctx: &Context, snapshotter: &str) -> Result<u64> {
    count(tx, &format!("snapshot/{}/{snapshotter}", ctx.namespace))
}

/// A parent must exist and be committed.
fn check_parent(
    reader: &impl Reader,
    ctx: &Context,
    snapshotter: &str,
    parent: &str,
    action: &str,
) -> Result<()> {
    if parent.is_empty() {
        return Ok(());
    }
    let missing = || Error::not_found(format!("parent snapshot {parent} does not exist"));
    let record = find(reader, ctx, snapshotter, parent)?.ok_or_else(missing)?;
    if record.kind != Kind::Committed {
        return Err(Error::invalid_argument(format!(
            "{action}: parent {:?} is not committed snapshot",
            record.shown(&ctx.namespace)
        )));
    }
    Ok(())
}

/// Name and text of what stands in the way of a new snapshot.
fn obstacle(reader: &impl Reader, ctx: &Context, new: &NewSnapshot) -> Result<Option<(String, String)>> {
    if let Some(target) = new.labels.get(TARGET)
        && find(reader, ctx, &new.snapshotter, target)?.is_some()
    {
        return Ok(Some((target.clone(), format!("target snapshot {target:?}"))));
    }
    let known = find(reader, ctx, &new.snapshotter, &new.key)?;
    Ok(known.map(|_| (new.key.clone(), format!("snapshot {:?}", new.key))))
}

impl SnapshotRecords {
    /// Over a database; changes are told to the exchange.
    #[must_use]
    pub fn new(database: Database, exchange: Exchange) -> Self {
        Self { database, exchange }
    }

    /// Numbers of the directories below a snapshot, its parent's first.
    ///
    /// # Errors
    /// NotFound when the chain is broken.
    pub fn chain(&self, ctx: &Context, snapshotter: &str, parent: &str) -> Result<Vec<u64>> {
        let view = self.database.read()?;
        let (mut ids, mut name) = (Vec::new(), parent.to_owned());
        while !name.is_empty() {
            let record = existing(&view, ctx, snapshotter, &name)?;
            ids.push(record.id);
            name = record.parent;
        }
        Ok(ids)
    }

    /// Whether a snapshot could be made now. A key that exists joins the caller's lease.
    ///
    /// # Errors
    /// AlreadyExists, NotFound and InvalidArgument for the parent, NotFound for the lease.
    pub async fn check_new(&self, ctx: &Context, new: &NewSnapshot) -> Result<()> {
        if new.key.is_empty() {
            return Err(Error::invalid_argument("snapshot key must not be empty"));
        }
        labels::validate(&new.labels).context("info.Labels")?;
        let view = self.database.read()?;
        leases::check(&view, ctx)?;
        if let Some((name, text)) = obstacle(&view, ctx, new)? {
            if ctx.lease.is_some() {
                let (ctx, kind) = (ctx.clone(), resource(&new.snapshotter));
                self.database.write(move |tx| leases::attach(tx, &ctx, &kind, &name)).await?;
            }
            return Err(Error::already_exists(text));
        }
        check_parent(&view, ctx, &new.snapshotter, &new.parent, CREATING)
    }

    /// A key for a snapshot that is about to be made, never given before.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn reserve(&self, ctx: &Context, snapshotter: &str, name: &str) -> Result<String> {
        let (ctx, snapshotter, name) = (ctx.clone(), snapshotter.to_owned(), name.to_owned());
        let change = move |tx: &mut Tx<'_>| {
            Ok(full_key(&ctx.namespace, next_sequence(tx, &ctx, &snapshotter)?, &name))
        };
        self.database.write(change).await
    }

    /// Records a snapshot that is in its place.
    ///
    /// # Errors
    /// As [`SnapshotRecords::check_new`].
    pub async fn create(&self, ctx: &Context, new: NewSnapshot, place: Place) -> Result<SnapshotRecord> {
        labels::validate(&new.labels).context("info.Labels")?;
        let (owned, kind) = (ctx.clone(), new.kind);
        let change = move |tx: &mut Tx<'_>| {
            if let Some((name, text)) = obstacle(tx, &owned, &new)? {
                // Somebody was faster: his joins the lease, which must last.
                leases::attach(tx, &owned, &resource(&new.snapshotter), &name)?;
                return Ok(Err(Error::already_exists(text)));
            }
            check_parent(tx, &owned, &new.snapshotter, &new.parent, CREATING)?;
            leases::attach(tx, &owned, &resource(&new.snapshotter), &new.key)?;
            namespaces::ensure(tx, &owned.namespace)?;
            let (id, key, sequence) = match place {
                Place::Id(id) => (id, String::new(), next_sequence(tx, &owned, &new.snapshotter)?),
                Place::Key(key) => (0, key.clone(), sequence_of(&key)),
            };
            let now = SystemTime::now();
            let mut snapshot = SnapshotRecord {
                name: new.key,
                snapshotter: new.snapshotter,
                id,
                key,
                committing: String::new(),
                sequence,
                parent: new.parent,
                kind: new.kind,
                labels: new.labels,
                created_at: now,
                updated_at: now,
                size: 0,
                inodes: 0,
            };
            labels::drop_empty(&mut snapshot.labels);
            store(tx, &owned, &snapshot)?;
            Ok(Ok(snapshot))
        };
        let snapshot = self.database.write(change).await??;
        if kind == Kind::Active {
            let event = told::SnapshotPrepare {
                key: snapshot.name.clone(),
                parent: snapshot.parent.clone(),
                snapshotter: snapshot.snapshotter.clone(),
            };
            self.exchange.publish(&ctx.namespace, "/snapshot/prepare", &event);
        }
        Ok(snapshot)
    }

    /// Records a committed snapshot that its snapshotter had by itself. It joins the caller's lease.
    ///
    /// # Errors
    /// AlreadyExists; NotFound for the parent; InvalidArgument when the snapshotter has it on another one.
    pub async fn adopt(&self, ctx: &Context, new: NewSnapshot, found: Found) -> Result<()> {
        labels::validate(&new.labels).context("info.Labels")?;
        let ctx = ctx.clone();
        let change = move |tx: &mut Tx<'_>| {
            let kind = resource(&new.snapshotter);
            if find(tx, &ctx, &new.snapshotter, &new.key)?.is_some() {
                leases::attach(tx, &ctx, &kind, &new.key)?;
                return Ok(Err(Error::already_exists(format!("snapshot {:?}", new.key))));
            }
            check_parent(tx, &ctx, &new.snapshotter, &new.parent, CREATING)?;
            let parent = match new.parent.as_str() {
                "" => String::new(),
                parent => existing(tx, &ctx, &new.snapshotter, parent)?.key,
            };
            if parent != found.parent {
                let text = format!("mismatched parent {} from target {}", new.parent, new.key);
                return Err(Error::invalid_argument(text));
            }
            leases::attach(tx, &ctx, &kind, &new.key)?;
            namespaces::ensure(tx, &ctx.namespace)?;
            let mut snapshot = SnapshotRecord {
                name: new.key,
                snapshotter: new.snapshotter,
                id: 0,
                key: found.key,
                committing: String::new(),
                sequence: 0,
                parent: new.parent,
                kind: Kind::Committed,
                labels: new.labels,
                created_at: found.created_at,
                updated_at: found.updated_at,
                size: 0,
                inodes: 0,
            };
            labels::drop_empty(&mut snapshot.labels);
            store(tx, &ctx, &snapshot)?;
            Ok(Ok(()))
        };
        self.database.write(change).await?
    }

    /// Notes the key that a commit is about to give to an active snapshot, so that it is known whatever
    /// happens.
    ///
    /// # Errors
    /// NotFound.
    pub async fn intend(&self, ctx: &Context, snapshotter: &str, name: &str, key: &str) -> Result<String> {
        let ctx = ctx.clone();
        let [snapshotter, name, key] = [snapshotter, name, key].map(str::to_owned);
        let change = move |tx: &mut Tx<'_>| {
            let mut snapshot = existing(tx, &ctx, &snapshotter, &key)?;
            let sequence = next_sequence(tx, &ctx, &snapshotter)?;
            snapshot.committing = full_key(&ctx.namespace, sequence, &name);
            store(tx, &ctx, &snapshot)?;
            Ok(snapshot.committing)
        };
        self.database.write(change).await
    }

    /// The active snapshot or view under a key.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed one.
    pub fn mountable(&self, ctx: &Context, snapshotter: &str, key: &str) -> Result<SnapshotRecord> {
        let snapshot = existing(&self.database.read()?, ctx, snapshotter, key)?;
        if snapshot.kind == Kind::Committed {
            let shown = snapshot.shown(&ctx.namespace);
            let wanted = if snapshotter == "native" { "snapshot" } else { "active" };
            return Err(Error::failed_precondition(format!(
                "failed to get {wanted} mount: requested snapshot {shown} not active or view"
            )));
        }
        Ok(snapshot)
    }

    /// The active snapshot that is to be committed as `name`.
    ///
    /// # Errors
    /// NotFound; AlreadyExists for the name; FailedPrecondition when it is not active; InvalidArgument for a
    /// parent where there is one.
    pub fn committable(
        &self,
        ctx: &Context,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: &str,
    ) -> Result<SnapshotRecord> {
        check_commit(&self.database.read()?, ctx, snapshotter, name, key, parent)
    }

    /// Turns an active snapshot into a committed one. A `parent` is given only where it had none.
    ///
    /// # Errors
    /// As [`SnapshotRecords::committable`].
    #[expect(clippy::too_many_arguments, reason = "one call of the wire")]
    pub async fn commit(
        &self,
        ctx: &Context,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: &str,
        mut labels: Labels,
        (size, inodes): (u64, u64),
    ) -> Result<()> {
        labels::validate(&labels).context("info.Labels")?;
        labels::drop_empty(&mut labels);
        let owned = ctx.clone();
        let [snapshotter2, name2, key2, parent2] = [snapshotter, name, key, parent].map(str::to_owned);
        let change = move |tx: &mut Tx<'_>| {
            let mut snapshot = check_commit(tx, &owned, &snapshotter2, &name2, &key2, &parent2)?;
            erase(tx, &owned, &snapshot)?;
            let kind = resource(&snapshotter2);
            leases::detach(tx, &owned, &kind, &key2)?;
            leases::attach(tx, &owned, &kind, &name2)?;
            let now = SystemTime::now();
            if !parent2.is_empty() {
                snapshot.parent = parent2;
            }
            let committing = std::mem::take(&mut snapshot.committing);
            let sequence = match committing.as_str() {
                "" => next_sequence(tx, &owned, &snapshotter2)?,
                key => sequence_of(key),
            };
            snapshot = SnapshotRecord {
                sequence,
                key: committing,
                name: name2,
                kind: Kind::Committed,
                labels,
                created_at: now,
                updated_at: now,
                size,
                inodes,
                ..snapshot
            };
            store(tx, &owned, &snapshot)
        };
        self.database.write(change).await?;
        let event =
            told::SnapshotCommit { key: key.into(), name: name.into(), snapshotter: snapshotter.into() };
        self.exchange.publish(&ctx.namespace, "/snapshot/commit", &event);
        Ok(())
    }

    /// Removes a record without children; its directory goes later.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition with children.
    pub async fn remove(&self, ctx: &Context, snapshotter: &str, name: &str) -> Result<()> {
        let owned = ctx.clone();
        let [snapshotter2, name2] = [snapshotter, name].map(str::to_owned);
        let change = move |tx: &mut Tx<'_>| {
            let snapshot = existing(tx, &owned, &snapshotter2, &name2)?;
            if has_children(tx, &owned, &snapshotter2, &name2)? {
                return Err(Error::failed_precondition("cannot remove snapshot with child"));
            }
            leases::detach(tx, &owned, &resource(&snapshotter2), &name2)?;
            tx.note_deletion();
            erase(tx, &owned, &snapshot)
        };
        self.database.write(change).await?;
        self.tell_removed(&ctx.namespace, snapshotter, name);
        Ok(())
    }

    pub(crate) fn tell_removed(&self, namespace: &Namespace, snapshotter: &str, name: &str) {
        let event = told::SnapshotRemove { key: name.into(), snapshotter: snapshotter.into() };
        self.exchange.publish(namespace, "/snapshot/remove", &event);
    }

    /// A snapshot.
    ///
    /// # Errors
    /// NotFound.
    pub fn stat(&self, ctx: &Context, snapshotter: &str, name: &str) -> Result<SnapshotRecord> {
        existing(&self.database.read()?, ctx, snapshotter, name)
    }

    /// Changes labels: those that `paths` names (`labels`, `labels.K`), or all when it names none.
    ///
    /// # Errors
    /// NotFound, InvalidArgument.
    pub async fn update(
        &self,
        ctx: &Context,
        snapshotter: &str,
        name: &str,
        new: Labels,
        paths: Vec<String>,
    ) -> Result<SnapshotRecord> {
        let ctx = ctx.clone();
        let [snapshotter, name] = [snapshotter, name].map(str::to_owned);
        self.database
            .write(move |tx| {
                let mut snapshot = existing(tx, &ctx, &snapshotter, &name)?;
                if paths.is_empty() {
                    snapshot.labels.clone_from(&new);
                }
                for path in &paths {
                    if !apply_map("labels", path, &mut snapshot.labels, &new) {
                        let text = format!("cannot update {path:?} field on snapshot {name:?}");
                        return Err(Error::invalid_argument(text));
                    }
                }
                labels::validate(&snapshot.labels).context("info.Labels")?;
                labels::drop_empty(&mut snapshot.labels);
                snapshot.updated_at = SystemTime::now();
                store(tx, &ctx, &snapshot)?;
                Ok(snapshot)
            })
            .await
    }

    /// The snapshots that pass, by name.
    ///
    /// # Errors
    /// InvalidArgument for a malformed filter.
    pub fn list(&self, ctx: &Context, snapshotter: &str, filters: &[String]) -> Result<Vec<SnapshotRecord>> {
        let filter = Filter::parse(filters)?;
        let mut found = Vec::new();
        let parts = [ctx.namespace.as_str(), snapshotter];
        scan(&self.database.read()?, keys::Kind::Snapshot, &parts, |mut parts, record| {
            let name = parts.pop().unwrap_or_default();
            let snapshot = SnapshotRecord::from_record(&name, snapshotter, record);
            if filter.matches(&snapshot) {
                found.push(snapshot);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// All snapshots of a snapshotter, with their namespaces.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all(&self, snapshotter: &str) -> Result<Vec<(Namespace, SnapshotRecord)>> {
        let mut found = Vec::new();
        scan(&self.database.read()?, keys::Kind::Snapshot, &[], |parts, record: records::Snapshot| {
            if let [namespace, of, name] = parts.as_slice()
                && of == snapshotter
                && let Ok(namespace) = Namespace::new(namespace.as_str())
            {
                found.push((namespace, SnapshotRecord::from_record(name, snapshotter, record)));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Numbers of the directories that any namespace knows.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all_ids(&self, snapshotter: &str) -> Result<BTreeSet<u64>> {
        let mut found = BTreeSet::new();
        scan(&self.database.read()?, keys::Kind::Snapshot, &[], |parts, record: records::Snapshot| {
            if parts.get(1).is_some_and(|name| name == snapshotter) {
                found.insert(record.id);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Keys with the snapshotter that any namespace knows.
    ///
    /// # Errors
    /// Those of the database.
    pub fn all_keys(&self, snapshotter: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        scan(&self.database.read()?, keys::Kind::Snapshot, &[], |parts, record: records::Snapshot| {
            if parts.get(1).is_some_and(|name| name == snapshotter) {
                found.extend([record.key, record.committing]);
            }
            Ok(())
        })?;
        Ok(found)
    }
}

pub(crate) fn has_children(
    reader: &impl Reader,
    ctx: &Context,
    snapshotter: &str,
    name: &str,
) -> Result<bool> {
    let prefix = Key::prefix(keys::Kind::Child, &[ctx.namespace.as_str(), snapshotter, name]);
    let mut found = false;
    reader.scan_bytes(prefix.bytes(), &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// Removes a snapshot for the collector, unless it has children.
pub(crate) fn collect(tx: &mut Tx<'_>, ctx: &Context, snapshotter: &str, name: &str) -> Result<bool> {
    let Some(snapshot) = find(tx, ctx, snapshotter, name)? else { return Ok(false) };
    if has_children(tx, ctx, snapshotter, name)? {
        return Ok(false);
    }
    erase(tx, ctx, &snapshot)?;
    Ok(true)
}

fn check_commit(
    reader: &impl Reader,
    ctx: &Context,
    snapshotter: &str,
    name: &str,
    key: &str,
    parent: &str,
) -> Result<SnapshotRecord> {
    leases::check(reader, ctx)?;
    let snapshot = existing(reader, ctx, snapshotter, key)?;
    if find(reader, ctx, snapshotter, name)?.is_some() {
        return Err(Error::already_exists(format!("snapshot {name:?}")));
    }
    if snapshot.kind != Kind::Active {
        let shown = snapshot.shown(&ctx.namespace);
        return Err(Error::failed_precondition(format!(
            "failed to commit snapshot {shown}: snapshot {shown:?} is not active"
        )));
    }
    if !parent.is_empty() {
        if !snapshot.parent.is_empty() && snapshot.parent != parent {
            let text =
                format!("parent {parent:?} is given for a snapshot that has one: {:?}", snapshot.parent);
            return Err(Error::invalid_argument(text));
        }
        check_parent(reader, ctx, snapshotter, parent, "failed to commit snapshot")?;
    }
    Ok(snapshot)
}
