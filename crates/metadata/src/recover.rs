//! A damaged database is replaced by one with what can still be read of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use corten_types::{Namespace, Result, ResultExt};
use prost::Message as _;

use crate::database::{Options, fill};
use crate::keys::{Key, Kind};
use crate::records;
use crate::salvage::{Gap, Salvaged, salvage};
use crate::seal::seal;

/// What was set aside, and how much of it lives on.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Where the damaged file lies now. While it is there, nothing that its records may have been about is
    /// removed from disk.
    pub set_aside: PathBuf,
    /// Why it could not be used.
    pub reason: String,
    /// Records that were recovered, by kind.
    pub recovered: BTreeMap<&'static str, u64>,
    /// Records that were not; nothing when nobody knows how many there were.
    pub missing: Option<u64>,
    /// The kinds that some of them may have been of.
    pub among: BTreeSet<&'static str>,
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Puts a new database, with what can be read, in the place of a damaged one, which gets another name. After
/// a crash on the way the damaged one is there still.
pub(crate) fn recover(path: &Path, options: Options, reason: String) -> Result<Lost> {
    let found = std::panic::catch_unwind(|| salvage(path));
    let found =
        found.unwrap_or_else(|_| Ok(Salvaged::default())).with_context(|| path.display().to_string())?;
    let (count, mut rows) = (found.rows.len() as u64, found.rows);
    let recovered = counts(&rows);
    complete(&mut rows);
    let new = path.with_file_name(format!("{}.recovered", name(path)));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| new.display().to_string());
        }
        _ => {}
    }
    fill(&new, options, &rows)?;
    let set_aside = set_aside(path)?;
    corten_durable::rename(&new, path).with_context(|| path.display().to_string())?;
    let missing = found.total.map(|total| total.saturating_sub(count));
    let among = if missing == Some(0) { BTreeSet::new() } else { kinds(&found.gaps) };
    Ok(Lost { set_aside, reason, recovered, missing, among })
}

fn counts(rows: &Rows) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for word in rows.keys().filter_map(|key| word(*key.first()?)) {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

/// What people call records whose keys begin so; nothing for those that only help others.
fn word(kind: u8) -> Option<&'static str> {
    Some(match kind {
        b'n' => "namespaces",
        b'c' => "containers",
        b'i' => "images",
        b'b' => "blobs",
        b'g' => "ingests",
        b's' => "snapshots",
        b'l' => "leases",
        b'r' => "resources of leases",
        b'x' => "sandboxes",
        _ => return None,
    })
}

/// The kinds whose keys lie in gaps.
fn kinds(gaps: &[Gap]) -> BTreeSet<&'static str> {
    let first = |key: &Option<Vec<u8>>, otherwise| {
        key.as_ref().and_then(|key| key.first().copied()).unwrap_or(otherwise)
    };
    let spans = gaps.iter().map(|gap| first(&gap.after, 0)..=first(&gap.until, u8::MAX));
    spans.flat_map(|span| span.filter_map(word)).collect()
}

/// Makes what other records imply and may be lost: namespaces, the children of snapshots, counters.
fn complete(rows: &mut Rows) {
    rows.retain(|key, _| key.first() != Some(&(Kind::Child as u8)));
    let (mut implied, mut counters) = (Rows::new(), BTreeMap::<String, u64>::new());
    let mut imply = |kind: Kind, parts: &[&str], record: Vec<u8>| {
        if let Ok(key) = Key::new(kind, parts) {
            implied.insert(key.bytes().to_vec(), seal(key.bytes(), record));
        }
    };
    for (key, record) in rows.iter() {
        let parts = Key::parts(key);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let kind = key.first().copied().unwrap_or_default();
        if word(kind).is_some()
            && let Some(namespace) = parts.first().filter(|name| Namespace::new(**name).is_ok())
        {
            imply(Kind::Namespace, &[namespace], records::Namespace::default().encode_to_vec());
        }
        let mut reached = |counter: String, number: u64| {
            let known = counters.entry(counter).or_default();
            *known = number.max(*known);
        };
        match (kind, parts.as_slice()) {
            (b's', [namespace, snapshotter, name]) => {
                let snapshot = records::Snapshot::decode(record.as_slice()).unwrap_or_default();
                reached(format!("snapshot/{namespace}/{snapshotter}"), snapshot.sequence);
                if !snapshot.parent.is_empty() {
                    let child = [namespace, snapshotter, snapshot.parent.as_str(), name];
                    imply(Kind::Child, &child, records::Number::default().encode_to_vec());
                }
            }
            (b'g', [namespace, _]) => {
                let ingest = records::Ingest::decode(record.as_slice()).unwrap_or_default();
                let number = ingest.backend.split('/').nth(1).and_then(|number| number.parse().ok());
                reached(format!("ingest/{namespace}"), number.unwrap_or(0));
            }
            _ => {}
        }
    }
    for (name, value) in counters {
        imply(Kind::Counter, &[&name], records::Number { value }.encode_to_vec());
    }
    // What was read comes before what is implied.
    for (key, record) in implied {
        rows.entry(key).or_insert(record);
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn set_aside_name(path: &Path) -> String {
    format!("{}.damaged", name(path))
}

/// Gives a file a second name.
fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 0..1000 {
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        let target = path.with_file_name(format!("{}{suffix}", set_aside_name(path)));
        match corten_durable::link_new(path, &target) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| target).with_context(|| path.display().to_string()),
        }
    }
    Err(corten_types::Error::internal(format!("{}: too many damaged databases beside it", path.display())))
}

/// Damaged databases that lie beside one.
pub(crate) fn set_aside_files(path: &Path) -> Vec<PathBuf> {
    let name = set_aside_name(path);
    let entries = path.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let files = entries.into_iter().flatten().flatten();
    files
        .filter(|file| file.file_name().to_string_lossy().starts_with(&name))
        .map(|file| file.path())
        .collect()
}
