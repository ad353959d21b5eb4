//! How records lie in the file: messages of our own, so that later versions can add fields (below 100, see
//! `seal`).

use std::collections::BTreeMap;

use corten_types::{Any, Error, Filter, Labels, Result};
use prost::Message;
use prost_types::Timestamp;

use crate::keys::{Key, Kind};
use crate::seal::seal;
use crate::transaction::{Reader, Tx};

macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub(crate) struct $name { $($(#[$field])* pub $member: $type,)* }
    };
}

record! { Namespace {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
} }

record! { Container {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
    #[prost(string, tag = "2")] image: String,
    #[prost(string, tag = "3")] runtime: String,
    #[prost(message, optional, tag = "4")] options: Option<Any>,
    #[prost(message, optional, tag = "5")] spec: Option<Any>,
    #[prost(string, tag = "6")] snapshotter: String,
    #[prost(string, tag = "7")] snapshot_key: String,
    #[prost(message, optional, tag = "8")] created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "9")] updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, message", tag = "10")] extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "11")] sandbox: String,
} }

record! { Image {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
    #[prost(string, tag = "2")] media_type: String,
    #[prost(string, tag = "3")] digest: String,
    #[prost(int64, tag = "4")] size: i64,
    #[prost(btree_map = "string, string", tag = "5")] annotations: Labels,
    #[prost(message, optional, tag = "6")] created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")] updated_at: Option<Timestamp>,
} }

record! { Blob {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
    #[prost(uint64, tag = "2")] size: u64,
    #[prost(message, optional, tag = "3")] created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")] updated_at: Option<Timestamp>,
} }

record! { Ingest {
    #[prost(string, tag = "1")] backend: String,
    #[prost(message, optional, tag = "2")] expires_at: Option<Timestamp>,
    #[prost(string, tag = "3")] expected: String,
} }

record! { Snapshot {
    #[prost(uint64, tag = "1")] id: u64,
    #[prost(string, tag = "2")] parent: String,
    #[prost(uint32, tag = "3")] kind: u32,
    #[prost(btree_map = "string, string", tag = "4")] labels: Labels,
    #[prost(message, optional, tag = "5")] created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")] updated_at: Option<Timestamp>,
    #[prost(uint64, tag = "7")] size: u64,
    #[prost(uint64, tag = "8")] inodes: u64,
    #[prost(uint64, tag = "9")] sequence: u64,
    #[prost(string, tag = "10")] key: String,
    #[prost(string, tag = "11")] committing: String,
} }

record! { Lease {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
    #[prost(message, optional, tag = "2")] created_at: Option<Timestamp>,
} }

record! { Sandbox {
    #[prost(btree_map = "string, string", tag = "1")] labels: Labels,
    #[prost(string, tag = "2")] runtime: String,
    #[prost(message, optional, tag = "3")] options: Option<Any>,
    #[prost(message, optional, tag = "4")] spec: Option<Any>,
    #[prost(string, tag = "5")] sandboxer: String,
    #[prost(message, optional, tag = "6")] created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")] updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, message", tag = "8")] extensions: BTreeMap<String, Any>,
} }

record! { Mount {
    #[prost(string, tag = "1")] kind: String,
    #[prost(string, tag = "2")] source: String,
    #[prost(string, tag = "3")] target: String,
    #[prost(string, repeated, tag = "4")] options: Vec<String>,
} }

record! { ActiveMount {
    #[prost(message, optional, tag = "1")] mount: Option<Mount>,
    #[prost(message, optional, tag = "2")] mounted_at: Option<Timestamp>,
    #[prost(string, tag = "3")] mount_point: String,
} }

record! { Activation {
    #[prost(uint64, tag = "1")] number: u64,
    #[prost(string, tag = "2")] boot: String,
    #[prost(message, repeated, tag = "3")] active: Vec<ActiveMount>,
    #[prost(message, repeated, tag = "4")] system: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "5")] labels: Labels,
    #[prost(string, tag = "6")] lease: String,
} }

record! {
    /// A number, or nothing but the fact of being there.
    Number {
        #[prost(uint64, tag = "1")] value: u64,
    }
}

/// Reads a record.
pub(crate) fn get<M: Message + Default>(reader: &impl Reader, key: &Key) -> Result<Option<M>> {
    reader.get_bytes(key.bytes())?.map(|bytes| decode(&bytes)).transpose()
}

/// Calls `visit` with the last name and the record of everything under a prefix. A record that cannot be
/// read is passed over: it must not hide the others.
pub(crate) fn scan<M: Message + Default>(
    reader: &impl Reader,
    kind: Kind,
    parts: &[&str],
    mut visit: impl FnMut(Vec<String>, M) -> Result<()>,
) -> Result<()> {
    reader.scan_bytes(Key::prefix(kind, parts).bytes(), &mut |key, value| {
        if let Some(record) = decode_or_tell(key, value) {
            visit(Key::parts(key), record)?;
        }
        Ok(true)
    })
}

/// Calls `visit` with the name and the record of everything in a namespace that may pass a filter, in byte
/// order: where the filter wants certain names, which stand in `field`, only those are read.
pub(crate) fn select<M: Message + Default>(
    reader: &impl Reader,
    kind: Kind,
    namespace: &str,
    (filter, field): (&Filter, &str),
    mut visit: impl FnMut(String, M),
) -> Result<()> {
    let Some(names) = filter.values(field) else {
        return scan(reader, kind, &[namespace], |mut parts, record| {
            visit(parts.pop().unwrap_or_default(), record);
            Ok(())
        });
    };
    for name in names {
        // What can be no key names no record.
        let Ok(key) = Key::new(kind, &[namespace, name]) else { continue };
        if let Some(bytes) = reader.get_bytes(key.bytes())?
            && let Some(record) = decode_or_tell(key.bytes(), &bytes)
        {
            visit(name.to_owned(), record);
        }
    }
    Ok(())
}

fn decode_or_tell<M: Message + Default>(key: &[u8], value: &[u8]) -> Option<M> {
    M::decode(value)
        .inspect_err(
            |error| tracing::error!(key = %String::from_utf8_lossy(key), %error, "a record is damaged"),
        )
        .ok()
}

/// Writes a record, sealed.
pub(crate) fn put<M: Message>(tx: &mut Tx<'_>, key: &Key, record: &M) {
    tx.put(key, seal(key.bytes(), record.encode_to_vec()));
}

/// The next number of a counter, from 1.
pub(crate) fn count(tx: &mut Tx<'_>, name: &str) -> Result<u64> {
    let key = Key::new(Kind::Counter, &[name])?;
    let value = get::<Number>(tx, &key)?.unwrap_or_default().value + 1;
    put(tx, &key, &Number { value });
    Ok(value)
}

pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|error| Error::internal(format!("database: a record is damaged: {error}")))
}

/// A stored time.
pub(crate) fn time(timestamp: Option<&Timestamp>) -> std::time::SystemTime {
    timestamp.map_or(std::time::UNIX_EPOCH, corten_types::timestamp::to_system)
}

/// A time to store.
pub(crate) fn stamp(time: std::time::SystemTime) -> Option<Timestamp> {
    Some(corten_types::timestamp::from_system(time))
}
