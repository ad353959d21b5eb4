//! What can still be read of a damaged database file.
//!
//! First the tree of the latest commit, page by page, each verified by its checksum: what it leads to is
//! exact. A page that is damaged gives those of its records whose seals are whole, and leaves gaps between
//! them. The gaps are filled from pages that no tree leads to: older versions of lost pages, the newest
//! first. A record that was removed shortly before can come back that way; none that was damaged can.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;

use crate::database::RECORDS;
use crate::pages::{Leaf, Page, PageFile, Pointer};
use crate::seal::written;

/// Levels of a tree that are believed: far more than there can be.
const DEEPEST: usize = 64;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Salvaged {
    /// Keys and records.
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Records that there were, if that could be read.
    pub total: Option<u64>,
    /// Where records may be missing.
    pub gaps: Vec<Gap>,
}

/// Keys after `after` and not after `until`; nothing stands for no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gap {
    pub after: Option<Vec<u8>>,
    pub until: Option<Vec<u8>>,
}

impl Gap {
    fn contains(&self, key: &[u8]) -> bool {
        self.after.as_ref().is_none_or(|after| after.as_slice() < key)
            && self.until.as_ref().is_none_or(|until| key <= until.as_slice())
    }
}

/// The table of records as of one commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Table {
    root: Option<Pointer>,
    length: u64,
}

/// What a tree holds that can be read.
#[derive(Clone, Copy, Default)]
struct Summary {
    newest: u64,
    is_whole: bool,
}

/// Reads what can be read.
///
/// # Errors
/// When the file cannot be opened at all.
pub(crate) fn salvage(path: &Path) -> io::Result<Salvaged> {
    let file = PageFile::open(path)?;
    let mut found = Salvaged::default();
    let mut read = HashSet::new();
    match latest(&file) {
        Some(table) => {
            found.total = Some(table.length);
            if let Some(root) = table.root {
                walk(&file, root, &Gap::default(), 0, &mut found, &mut read);
            }
        }
        None => found.gaps.push(Gap::default()),
    }
    if !found.gaps.is_empty() {
        fill(&file, &mut found, &read);
    }
    Ok(found)
}

/// The table as of the latest commit that is known.
fn latest(file: &PageFile) -> Option<Table> {
    let roots = file.roots();
    let tables: Vec<_> = roots.iter().map(|root| file.verified(*root).as_ref().and_then(table)).collect();
    if let [Some(latest), _] = tables.as_slice() {
        return Some(*latest);
    }
    // The slots are damaged, or what they point at: the newest of all that were ever written, and of those
    // with the same newest record the one with the fewest, since only removals came after it.
    let mut known = HashMap::new();
    let leaves = file.offsets().filter_map(|offset| table(&Page::Leaf(file.leaf(offset)?)));
    let candidates: HashSet<Table> = leaves.chain(tables.into_iter().flatten()).collect();
    candidates.into_iter().max_by_key(|table| {
        let summary = table.root.map(|root| summary(file, root, 0, &mut known)).unwrap_or_default();
        (summary.newest, summary.is_whole, Reverse(table.length))
    })
}

/// The table of records, in the list of tables.
fn table(page: &Page) -> Option<Table> {
    use redb::TableHandle as _;
    let Page::Leaf(leaf) = page else { return None };
    let (_, value) = leaf.pairs().find(|(name, _)| *name == RECORDS.name().as_bytes())?;
    let number = |from: usize| Some(u64::from_le_bytes(value.get(from..from + 8)?.try_into().ok()?));
    let root = match (value.first()?, value.get(9)?) {
        (3, 0) => None,
        (3, 1) => Some(Pointer::parse(value.get(10..18)?, value.get(18..34)?)?),
        _ => return None,
    };
    Some(Table { root, length: number(1)? })
}

fn summary(
    file: &PageFile,
    pointer: Pointer,
    depth: usize,
    known: &mut HashMap<Pointer, Summary>,
) -> Summary {
    if let Some(summary) = known.get(&pointer) {
        return *summary;
    }
    let summary = match file.verified(pointer) {
        Some(Page::Leaf(leaf)) => Summary { newest: newest(&leaf), is_whole: true },
        Some(Page::Branch(branch)) if depth < DEEPEST => {
            let children = branch.children.into_iter().map(|child| summary(file, child, depth + 1, known));
            children.fold(Summary { newest: 0, is_whole: true }, |all, child| Summary {
                newest: all.newest.max(child.newest),
                is_whole: all.is_whole && child.is_whole,
            })
        }
        _ => Summary::default(),
    };
    known.insert(pointer, summary);
    summary
}

/// When the newest of a leaf's whole records was written; 0 when there is none.
fn newest(leaf: &Leaf) -> u64 {
    leaf.pairs().filter_map(|(key, record)| written(key, record)).max().unwrap_or(0)
}

/// Takes in what a page leads to, and notes what of the keys that belong there is lost.
fn walk(
    file: &PageFile,
    pointer: Pointer,
    keys: &Gap,
    depth: usize,
    found: &mut Salvaged,
    read: &mut HashSet<u64>,
) {
    match file.verified(pointer) {
        Some(Page::Leaf(leaf)) => {
            read.extend(pointer.offset());
            found.rows.extend(leaf.pairs().map(|(key, record)| (key.to_vec(), record.to_vec())));
        }
        Some(Page::Branch(branch)) if depth < DEEPEST => {
            let mut after = keys.after.clone();
            for (n, child) in branch.children.into_iter().enumerate() {
                let until = branch.keys.get(n).cloned().or_else(|| keys.until.clone());
                let keys = Gap { after, until };
                walk(file, child, &keys, depth + 1, found, read);
                after = keys.until;
            }
        }
        _ => match pointer.offset().and_then(|offset| file.leaf(offset)) {
            Some(leaf) => damaged(&leaf, keys, found),
            None => found.gaps.push(keys.clone()),
        },
    }
}

/// Takes in what is whole of a leaf that is not; what lies between that is a gap.
fn damaged(leaf: &Leaf, keys: &Gap, found: &mut Salvaged) {
    let (mut after, mut is_gap) = (keys.after.clone(), false);
    for (key, record) in leaf.pairs() {
        if !keys.contains(key) || written(key, record).is_none() {
            is_gap = true;
            continue;
        }
        let until = Some(key.to_vec());
        if is_gap {
            found.gaps.push(Gap { after, until: until.clone() });
        }
        (after, is_gap) = (until, false);
        found.rows.insert(key.to_vec(), record.to_vec());
    }
    // How many there were is as uncertain as they are.
    found.gaps.push(Gap { after, until: keys.until.clone() });
}

/// Fills gaps from leaves that were not read, the newest first: what one of them covers, an older one does
/// not add to.
fn fill(file: &PageFile, found: &mut Salvaged, read: &HashSet<u64>) {
    let unread = file.offsets().filter(|offset| !read.contains(offset));
    let mut leaves: Vec<(u64, u64)> = unread
        .filter_map(|offset| Some((newest(&file.leaf(offset)?), offset)))
        .filter(|(newest, _)| *newest > 0)
        .collect();
    leaves.sort_unstable_by_key(|leaf| Reverse(*leaf));
    let mut open = found.gaps.clone();
    for (_, offset) in leaves {
        let Some(leaf) = file.leaf(offset) else { continue };
        let whole: Vec<_> = leaf.pairs().filter(|(key, record)| written(key, record).is_some()).collect();
        let (Some((first, _)), Some((last, _))) = (whole.first(), whole.last()) else { continue };
        let mut left = Vec::with_capacity(open.len());
        for gap in open {
            let is_before = gap.until.as_ref().is_some_and(|until| until.as_slice() < *first);
            let is_behind = gap.after.as_ref().is_some_and(|after| *last <= after.as_slice());
            if is_before || is_behind {
                left.push(gap);
                continue;
            }
            for (key, record) in whole.iter().filter(|(key, _)| gap.contains(key)) {
                found.rows.entry(key.to_vec()).or_insert_with(|| record.to_vec());
            }
            if gap.contains(first) {
                left.push(Gap { after: gap.after.clone(), until: Some(first.to_vec()) });
            }
            if gap.contains(last) {
                left.push(Gap { after: Some(last.to_vec()), until: gap.until.clone() });
            }
        }
        open = left;
    }
}
