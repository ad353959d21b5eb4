//! How the database library lays out its file (format 3), as far as it takes to read one that is damaged.
//!
//! A page is 4 KiB times a power of two, at a multiple of its size behind the first 4 KiB, which hold two
//! commit slots. A page's number and checksum lie in the page above it, the topmost ones in a slot. All
//! numbers are little-endian. Nothing here believes what it reads.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

const PAGE: u64 = 4096;
/// The largest page that is believed, as a power of two: 256 MiB.
const LARGEST: u32 = 16;
/// Bytes of a region, and so of what page numbers without a region mean.
const REGION: u64 = 4 << 30;
const SLOTS: [u64; 2] = [64, 192];
const SLOT: usize = 128;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// A page's number, and the checksum of what must be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pointer {
    number: u64,
    checksum: u128,
}

impl Pointer {
    pub(crate) fn parse(number: &[u8], checksum: &[u8]) -> Option<Self> {
        let number = u64::from_le_bytes(number.try_into().ok()?);
        Some(Self { number, checksum: u128::from_le_bytes(checksum.try_into().ok()?) })
    }

    /// Offset and length in the file.
    fn place(self) -> Option<(u64, usize)> {
        let order = u32::try_from(self.number >> 59).ok().filter(|order| *order <= LARGEST)?;
        let index = self.number & (0xf_ffff >> order);
        let region = (self.number >> 20) & 0xf_ffff;
        let offset = PAGE + region * REGION + index * (PAGE << order);
        Some((offset, usize::try_from(PAGE << order).ok()?))
    }

    /// Where the page begins.
    pub(crate) fn offset(self) -> Option<u64> {
        self.place().map(|(offset, _)| offset)
    }
}

/// A page that makes sense.
pub(crate) enum Page {
    Leaf(Leaf),
    Branch(Branch),
}

/// Keys with their values, in the order of the keys.
pub(crate) struct Leaf {
    data: Vec<u8>,
    pairs: Vec<(Range<usize>, Range<usize>)>,
}

/// Children, and between each two a key that none of the left exceeds and all of the right do.
pub(crate) struct Branch {
    pub children: Vec<Pointer>,
    pub keys: Vec<Vec<u8>>,
}

impl Leaf {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let part = |range: &Range<usize>| self.data.get(range.clone()).unwrap_or_default();
        self.pairs.iter().map(move |(key, value)| (part(key), part(value)))
    }
}

/// A file that may be damaged anywhere.
pub(crate) struct PageFile {
    file: File,
    length: u64,
}

impl PageFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }

    /// Where pages may begin.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = u64> + use<> {
        (1..self.length.div_ceil(PAGE)).map(|page| page * PAGE)
    }

    /// The topmost pages that whole slots name, the latest commit's first.
    pub(crate) fn roots(&self) -> Vec<Pointer> {
        let mut roots: Vec<(u64, Pointer)> = SLOTS
            .into_iter()
            .filter_map(|offset| {
                let slot = self.bytes(offset, SLOT);
                let (fields, checksum) = slot.split_at_checked(SLOT - 16)?;
                let whole = xxh3_128(fields).to_le_bytes() == checksum && fields.get(1) == Some(&1);
                let root = Pointer::parse(fields.get(8..16)?, fields.get(16..32)?)?;
                let commit = u64::from_le_bytes(fields.get(104..112)?.try_into().ok()?);
                whole.then_some((commit, root))
            })
            .collect();
        roots.sort_by_key(|(commit, _)| std::cmp::Reverse(*commit));
        roots.into_iter().map(|(_, root)| root).collect()
    }

    /// A page that is exactly what it was when it was written.
    pub(crate) fn verified(&self, pointer: Pointer) -> Option<Page> {
        let (offset, length) = pointer.place()?;
        let (page, end) = parse(self.bytes(offset, length))?;
        let data = match &page {
            Page::Leaf(leaf) => leaf.data.get(..end)?.to_vec(),
            Page::Branch(_) => self.bytes(offset, end),
        };
        (xxh3_128(&data) == pointer.checksum).then_some(page)
    }

    /// What looks like a leaf at this offset, as far as it makes sense.
    pub(crate) fn leaf(&self, offset: u64) -> Option<Leaf> {
        let first = self.bytes(offset, PAGE as usize);
        if first.first() != Some(&LEAF) {
            return None;
        }
        // The ends of the values say how long it is; one of them may be damaged.
        let count = usize::from(u16_at(&first, 2)?);
        let most = usize::try_from(PAGE << LARGEST).ok()?;
        let ends = self.bytes(offset, 4 + 8 * count);
        let ends = (count..2 * count).filter_map(|n| u32_at(&ends, 4 + 4 * n));
        let end = ends.filter(|end| *end <= most).max()?;
        parse_leaf(if end <= first.len() { first } else { self.bytes(offset, end) })
    }

    /// Bytes of the file, as far as there are any.
    fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut data = vec![0; length.min(left)];
        let mut at = 0;
        while at < data.len() {
            match self.file.read_at(data.get_mut(at..).unwrap_or_default(), offset + at as u64) {
                Ok(0) => break,
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A block that the disk does not give any more is a page of nothing, its neighbours are not.
                Err(_) => at = (at / PAGE as usize + 1) * PAGE as usize,
            }
        }
        data
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?)).ok()
}

/// What is in a page, and where that ends, when all of it makes sense.
fn parse(data: Vec<u8>) -> Option<(Page, usize)> {
    match data.first() {
        Some(&LEAF) => {
            let count = usize::from(u16_at(&data, 2)?);
            let leaf = parse_leaf(data)?;
            let end = leaf.pairs.last()?.1.end;
            (leaf.pairs.len() == count).then_some((Page::Leaf(leaf), end))
        }
        Some(&BRANCH) => parse_branch(&data),
        _ => None,
    }
}

/// Ends of the keys, ends of the values, keys, values. Pairs that lie nowhere are left out.
fn parse_leaf(data: Vec<u8>) -> Option<Leaf> {
    let count = usize::from(u16_at(&data, 2)?);
    let start = u32_at(&data, (4 * count).max(4))?;
    let keys = ranges(&data, 4, count, 4 + 8 * count);
    let values = ranges(&data, 4 + 4 * count, count, start);
    let pairs = keys.zip(values).filter_map(|(key, value)| Some((key?, value?))).collect();
    Some(Leaf { data, pairs })
}

/// Checksums of the children, their numbers, ends of the keys, keys.
fn parse_branch(data: &[u8]) -> Option<(Page, usize)> {
    let count = usize::from(u16_at(data, 2)?);
    let (checksums, numbers) = (8, 8 + 16 * (count + 1));
    let ends = numbers + 8 * (count + 1);
    let child = |n: usize| {
        let (number, checksum) = (numbers + 8 * n, checksums + 16 * n);
        Pointer::parse(data.get(number..number + 8)?, data.get(checksum..checksum + 16)?)
    };
    let children = (0..=count).map(child).collect::<Option<Vec<_>>>()?;
    let keys = ranges(data, ends, count, ends + 4 * count).collect::<Option<Vec<_>>>()?;
    let end = keys.last()?.end;
    let keys = keys.into_iter().map(|key| Some(data.get(key)?.to_vec())).collect::<Option<Vec<_>>>()?;
    Some((Page::Branch(Branch { children, keys }), end))
}

/// Ranges that lie one behind the other from `start`; their ends stand in the data at `ends`.
fn ranges(
    data: &[u8],
    ends: usize,
    count: usize,
    start: usize,
) -> impl Iterator<Item = Option<Range<usize>>> {
    let mut from = Some(start);
    (0..count).map(move |n| {
        let (begin, to) = (from, u32_at(data, ends + 4 * n));
        from = to;
        Some(begin?..to?).filter(|range| range.start <= range.end && range.end <= data.len())
    })
}
