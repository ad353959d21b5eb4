//! Keys: a kind, then the names that lead to a record, parted by NUL, so that the records of a namespace
//! lie together in the byte order of their names.

use corten_types::{Error, Result};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Namespace, by name.
    Namespace = b'n' as isize,
    /// Container, by namespace and id.
    Container = b'c' as isize,
    /// Image, by namespace and name.
    Image = b'i' as isize,
    /// Blob, by namespace and digest.
    Blob = b'b' as isize,
    /// Ingest, by namespace and reference.
    Ingest = b'g' as isize,
    /// Snapshot, by namespace, snapshotter and key.
    Snapshot = b's' as isize,
    /// Child of a snapshot, by namespace, snapshotter, parent and child.
    Child = b'k' as isize,
    /// Lease, by namespace and id.
    Lease = b'l' as isize,
    /// What a lease holds, by namespace, lease, type and id.
    Resource = b'r' as isize,
    /// Sandbox, by namespace and id.
    Sandbox = b'x' as isize,
    /// Activation of mounts, by namespace and name.
    Activation = b'm' as isize,
    /// Counter, by name.
    Counter = b'z' as isize,
}

/// A key, or the beginning of some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// The key of a record.
    pub(crate) fn new(kind: Kind, parts: &[&str]) -> Result<Self> {
        if let Some(part) = parts.iter().find(|part| part.contains('\0')) {
            return Err(Error::invalid_argument(format!("{part:?} must not contain NUL")));
        }
        let mut bytes = vec![kind as u8];
        bytes.extend_from_slice(parts.join("\0").as_bytes());
        Ok(Self(bytes))
    }

    /// What all keys of records below `parts` begin with.
    pub(crate) fn prefix(kind: Kind, parts: &[&str]) -> Self {
        let mut bytes = vec![kind as u8];
        for part in parts {
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0);
        }
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names in a key.
    pub(crate) fn parts(key: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(key.get(1..).unwrap_or_default());
        text.split('\0').map(str::to_owned).collect()
    }
}
