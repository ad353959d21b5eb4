//! What records refer to (spec 01 §16).

use std::time::SystemTime;

use corten_types::{Error, Labels, Result, timestamp};

use crate::activations;
use crate::condition::{Condition, USED_AT};
use crate::keys::{Key, Kind};
use crate::records::{self, decode, time};

/// A record that the collector looks at, within one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Node {
    Container(String),
    Image(String),
    Blob(String),
    Snapshot(String, String),
    Ingest(String),
    Lease(String),
    Sandbox(String),
    Activation(String),
    /// An open call, of which there is no record.
    Stream(String),
}

/// What a record says about itself and others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// It is kept by itself.
    pub root: bool,
    /// When it no longer is, if that is known.
    pub expires: Option<SystemTime>,
    /// A lease that keeps only what it names.
    pub is_flat: bool,
    /// It keeps these.
    pub refs: Vec<Node>,
    /// It keeps these even when its own references are not followed (flat leases).
    pub flat: Vec<Node>,
    /// These keep it.
    pub back: Vec<Node>,
    /// These keep it under a condition: only blobs and images have some.
    pub conditions: Vec<Condition>,
    /// When a snapshot was last used, as its label has it.
    pub used_at: Option<String>,
}

const ROOT: &str = "containerd.io/gc.root";
/// Ends a lease or an image by itself.
pub(crate) const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";

/// The namespace and node of a key, for those kinds that are nodes.
pub(crate) fn node(key: &[u8]) -> Option<(String, Node)> {
    let mut parts = Key::parts(key).into_iter();
    let namespace = parts.next()?;
    let (first, second) = (parts.next()?, parts.next());
    let node = match (*key.first()?, second) {
        (kind, Some(name)) if kind == Kind::Snapshot as u8 => Node::Snapshot(first, name),
        (kind, None) if kind == Kind::Container as u8 => Node::Container(first),
        (kind, None) if kind == Kind::Image as u8 => Node::Image(first),
        (kind, None) if kind == Kind::Blob as u8 => Node::Blob(first),
        (kind, None) if kind == Kind::Ingest as u8 => Node::Ingest(first),
        (kind, None) if kind == Kind::Lease as u8 => Node::Lease(first),
        (kind, None) if kind == Kind::Sandbox as u8 => Node::Sandbox(first),
        (kind, None) if kind == Kind::Activation as u8 => Node::Activation(first),
        _ => return None,
    };
    Some((namespace, node))
}

/// The key of a node.
pub(crate) fn key(namespace: &str, node: &Node) -> Result<Key> {
    match node {
        Node::Container(id) => Key::new(Kind::Container, &[namespace, id]),
        Node::Image(name) => Key::new(Kind::Image, &[namespace, name]),
        Node::Blob(digest) => Key::new(Kind::Blob, &[namespace, digest]),
        Node::Snapshot(snapshotter, name) => Key::new(Kind::Snapshot, &[namespace, snapshotter, name]),
        Node::Ingest(reference) => Key::new(Kind::Ingest, &[namespace, reference]),
        Node::Lease(id) => Key::new(Kind::Lease, &[namespace, id]),
        Node::Sandbox(id) => Key::new(Kind::Sandbox, &[namespace, id]),
        Node::Activation(name) => Key::new(Kind::Activation, &[namespace, name]),
        Node::Stream(id) => Err(Error::not_found(format!("no record tells of stream {id:?}"))),
    }
}

/// Reads what a record says. Leases list what they keep elsewhere.
pub(crate) fn entry(node: &Node, bytes: &[u8], now: SystemTime) -> Result<Entry> {
    let mut entry = Entry::default();
    match node {
        Node::Container(_) => {
            let record: records::Container = decode(bytes)?;
            entry.root = true;
            if !record.snapshotter.is_empty() {
                entry.refs.push(Node::Snapshot(record.snapshotter, record.snapshot_key));
            }
            entry.labels(&record.labels);
        }
        Node::Image(_) => {
            let record: records::Image = decode(bytes)?;
            entry.expires = expiry(&record.labels);
            entry.root = entry.expires.is_none_or(|end| end > now);
            entry.flat.push(Node::Blob(record.digest));
            entry.labels(&record.labels);
            entry.conditions(&record.labels);
        }
        Node::Blob(_) => {
            let record: records::Blob = decode(bytes)?;
            entry.root = record.labels.contains_key(ROOT);
            entry.labels(&record.labels);
            entry.conditions(&record.labels);
        }
        Node::Snapshot(snapshotter, _) => {
            let record: records::Snapshot = decode(bytes)?;
            entry.root = record.labels.contains_key(ROOT);
            if !record.parent.is_empty() {
                entry.flat.push(Node::Snapshot(snapshotter.clone(), record.parent));
            }
            entry.labels(&record.labels);
            entry.used_at = record.labels.get(USED_AT).cloned();
        }
        Node::Ingest(_) => {
            let record: records::Ingest = decode(bytes)?;
            entry.expires = record.expires_at.as_ref().map(|end| time(Some(end)));
            entry.root = entry.expires.is_some_and(|end| end > now);
            if !record.expected.is_empty() {
                entry.flat.push(Node::Blob(record.expected));
            }
        }
        Node::Lease(_) => {
            let record: records::Lease = decode(bytes)?;
            entry.expires = expiry(&record.labels);
            entry.root = entry.expires.is_none_or(|end| end > now);
            entry.is_flat = record.labels.contains_key(FLAT);
        }
        Node::Sandbox(_) => {
            let record: records::Sandbox = decode(bytes)?;
            entry.root = true;
            entry.labels(&record.labels);
        }
        Node::Activation(_) => {
            let record: records::Activation = decode(bytes)?;
            entry.labels(&record.labels);
            // It is kept by others, and keeps nobody.
            entry.refs.clear();
        }
        Node::Stream(_) => {}
    }
    Ok(entry)
}

/// The node that a lease's resource names.
pub(crate) fn resource(kind: &str, id: &str) -> Option<Node> {
    match kind.split_once('/') {
        Some(("snapshots", snapshotter)) => Some(Node::Snapshot(snapshotter.to_owned(), id.to_owned())),
        None => match kind {
            "content" => Some(Node::Blob(id.to_owned())),
            "images" => Some(Node::Image(id.to_owned())),
            "ingests" => Some(Node::Ingest(id.to_owned())),
            activations::RESOURCE => Some(Node::Activation(id.to_owned())),
            _ => None,
        },
        _ => None,
    }
}

/// An unreadable time never comes.
fn expiry(labels: &Labels) -> Option<SystemTime> {
    labels.get(EXPIRE).and_then(|text| timestamp::parse_rfc3339(text))
}

impl Entry {
    fn conditions(&mut self, labels: &Labels) {
        self.conditions.extend(labels.iter().filter_map(|(key, value)| Condition::parse(key, value)));
    }

    fn labels(&mut self, labels: &Labels) {
        for (key, value) in labels {
            if let Some(rest) = key.strip_prefix("containerd.io/gc.ref.") {
                self.refs.extend(reference(rest, value));
            } else if let Some(rest) = key.strip_prefix("containerd.io/gc.bref.") {
                let parent = reference(rest, value);
                self.back.extend(parent.filter(|parent| !matches!(parent, Node::Activation(_))));
            }
        }
    }
}

/// `content`, `content.x`, `content/x`, `snapshot.<snapshotter>[/x]`, … but not `contentx` (trap 14).
fn reference(rest: &str, value: &str) -> Option<Node> {
    let ends = |word: &str| {
        rest.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
    };
    if let Some(snapshotter) = rest.strip_prefix("snapshot.") {
        let snapshotter = snapshotter.split('/').next().unwrap_or_default();
        return Some(Node::Snapshot(snapshotter.to_owned(), value.to_owned()));
    }
    match () {
        () if ends("content") => Some(Node::Blob(value.to_owned())),
        () if ends("image") => Some(Node::Image(value.to_owned())),
        () if ends("mount") => Some(Node::Activation(value.to_owned())),
        () if ends("stream") => Some(Node::Stream(value.to_owned())),
        () if ends("container") => Some(Node::Container(value.to_owned())),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_known_by_whole_words() {
        let blob = Some(Node::Blob("v".into()));
        for (label, wanted) in [
            ("content", blob.clone()),
            ("content.m.0", blob.clone()),
            ("content/config", blob),
            ("contentfoo", None),
            ("image", Some(Node::Image("v".into()))),
            ("image/x", Some(Node::Image("v".into()))),
            ("images", None),
            ("container.x", Some(Node::Container("v".into()))),
            ("snapshot.overlayfs", Some(Node::Snapshot("overlayfs".into(), "v".into()))),
            ("snapshot.overlayfs/x", Some(Node::Snapshot("overlayfs".into(), "v".into()))),
            ("snapshot", None),
            ("mount.x", Some(Node::Activation("v".into()))),
            ("mounts", None),
            ("stream", Some(Node::Stream("v".into()))),
            ("stream.x", Some(Node::Stream("v".into()))),
            ("streams", None),
        ] {
            assert_eq!(reference(label, "v"), wanted, "{label}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_read_never_comes() {
        let image = |end: &str| {
            let labels = Labels::from([(EXPIRE.to_owned(), end.to_owned())]);
            let record = records::Image { labels, digest: "d".into(), ..Default::default() };
            let bytes = prost::Message::encode_to_vec(&record);
            entry(&Node::Image("i".into()), &bytes, SystemTime::now()).unwrap().root
        };
        assert!(image("soon"));
        assert!(image("2999-01-01T00:00:00Z"));
        assert!(!image("1999-01-01T00:00:00+02:00"));
    }
}
