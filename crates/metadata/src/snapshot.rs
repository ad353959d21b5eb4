//! What is recorded of a snapshot.

use std::borrow::Cow;
use std::time::SystemTime;

use corten_types::filter::{Fields, label, text};
use corten_types::{Labels, Namespace};

use crate::records::{self, stamp, time};

/// What a snapshot is for; the numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read only, never committed.
    View = 1,
    /// Being written.
    Active = 2,
    /// A parent for others.
    Committed = 3,
}

impl Kind {
    fn from_number(number: u32) -> Self {
        match number {
            1 => Self::View,
            3 => Self::Committed,
            _ => Self::Active,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A snapshot as a namespace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its key, or its name once committed.
    pub name: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// Number of its directory, unique per snapshotter over all namespaces; 0 with a snapshotter that goes
    /// by keys.
    pub id: u64,
    /// Its key with a snapshotter that goes by keys, unique over all namespaces; else empty.
    pub key: String,
    /// The key that a commit, which may have been interrupted, gives it; empty if there was none.
    pub committing: String,
    /// Number of its name, unique per snapshotter in its namespace; messages show it.
    pub sequence: u64,
    /// Name of its parent; empty for none.
    pub parent: String,
    /// What it is for.
    pub kind: Kind,
    /// Labels.
    pub labels: Labels,
    /// When it was made or committed.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
    /// Bytes on disk, recorded when committed.
    pub size: u64,
    /// Inodes on disk, recorded when committed.
    pub inodes: u64,
}

/// Where a snapshot is with its snapshotter.
#[derive(Clone, Debug)]
pub enum Place {
    /// The number of its directory.
    Id(u64),
    /// Its key, from [`SnapshotRecords::reserve`].
    Key(String),
}

/// A snapshot that a snapshotter had by itself.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its key with the snapshotter.
    pub key: String,
    /// That of its parent; empty for none.
    pub parent: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last changed.
    pub updated_at: SystemTime,
}

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// The snapshotter.
    pub snapshotter: String,
    /// Its key.
    pub key: String,
    /// Name of its parent; empty for none.
    pub parent: String,
    /// [`Kind::Active`] or [`Kind::View`].
    pub kind: Kind,
    /// Labels.
    pub labels: Labels,
}

impl Fields for SnapshotRecord {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["kind", ..] => text(self.kind.text()),
            ["name", ..] => Some(Cow::Borrowed(&self.name)),
            ["parent", ..] => Some(Cow::Borrowed(&self.parent)),
            ["labels", rest @ ..] => label(rest, &self.labels),
            _ => None,
        }
    }
}

impl SnapshotRecord {
    pub(crate) fn from_record(name: &str, snapshotter: &str, record: records::Snapshot) -> Self {
        Self {
            name: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
            id: record.id,
            key: record.key,
            committing: record.committing,
            sequence: record.sequence,
            parent: record.parent,
            kind: Kind::from_number(record.kind),
            labels: record.labels,
            created_at: time(record.created_at.as_ref()),
            updated_at: time(record.updated_at.as_ref()),
            size: record.size,
            inodes: record.inodes,
        }
    }

    pub(crate) fn record(&self) -> records::Snapshot {
        records::Snapshot {
            id: self.id,
            key: self.key.clone(),
            committing: self.committing.clone(),
            sequence: self.sequence,
            parent: self.parent.clone(),
            kind: self.kind as u32,
            labels: self.labels.clone(),
            created_at: stamp(self.created_at),
            updated_at: stamp(self.updated_at),
            size: self.size,
            inodes: self.inodes,
        }
    }

    /// What messages call it: `<namespace>/<number>/<name>`.
    pub(crate) fn shown(&self, namespace: &Namespace) -> String {
        if self.key.is_empty() { full_key(namespace, self.sequence, &self.name) } else { self.key.clone() }
    }
}

/// What snapshotters that know no namespaces call a snapshot.
pub(crate) fn full_key(namespace: &Namespace, sequence: u64, name: &str) -> String {
    format!("{namespace}/{sequence}/{name}")
}

/// The sequence in such a key.
pub(crate) fn sequence_of(key: &str) -> u64 {
    key.split('/').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
