//! An archive, entry by entry, whose bytes are all passed on as they are.

use std::collections::BTreeMap;
use std::io::{self, Read};

/// What an archive is made of.
pub const BLOCK: usize = 512;
/// The longest name or list of attributes of an entry.
const MAX_EXTENSION: u64 = 1 << 20;

/// An entry: what it says, and the bytes that say it.
#[derive(Debug, Default)]
pub struct Item {
    /// All headers of it.
    pub raw: Vec<u8>,
    pub name: String,
    pub link: String,
    /// As in the header: `0` a file, `5` a folder, …
    pub kind: u8,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub user: String,
    pub group: String,
    /// Seconds.
    pub modified: i64,
    /// Bytes that follow, without what fills the last block.
    pub size: u64,
    pub device: (u64, u64),
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Item {
    pub fn is_file(&self) -> bool {
        matches!(self.kind, 0 | b'0' | b'7')
    }

    /// The word of lists of content for it; nothing for what has none.
    pub fn word(&self) -> Option<&'static str> {
        Some(match self.kind {
            0 | b'0' | b'7' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            _ => return None,
        })
    }

    /// What fills the last block.
    pub fn padding(&self) -> u64 {
        self.size.next_multiple_of(BLOCK as u64) - self.size
    }
}

/// Reads entries; the bytes of each are read from [`Tape::input`] before the next one.
#[derive(Debug)]
pub struct Tape<R> {
    pub input: R,
    /// What was read of the end.
    pub tail: Vec<u8>,
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

impl<R: Read> Tape<R> {
    pub fn new(input: R) -> Self {
        Self { input, tail: Vec::new() }
    }

    /// The next entry; nothing at the end.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        let mut item = Item::default();
        let mut extended = BTreeMap::new();
        let (mut name, mut link) = (None, None);
        loop {
            let mut header = [0; BLOCK];
            if !self.header(&mut header)? {
                return if item.raw.is_empty() { Ok(None) } else { Err(invalid("the archive ends early")) };
            }
            item.raw.extend_from_slice(&header);
            let size = number(field(&header, 124, 12)).ok_or_else(|| invalid("an entry without a size"))?;
            match header[156] {
                b'x' => extended = attributes(&self.extension(&mut item.raw, size)?),
                // What holds for all entries names none of what is of interest here.
                b'g' => drop(self.extension(&mut item.raw, size)?),
                b'L' => name = Some(text(&self.extension(&mut item.raw, size)?)),
                b'K' => link = Some(text(&self.extension(&mut item.raw, size)?)),
                b'S' => return Err(invalid("an archive with sparse files is not converted")),
                _ => {
                    describe(&mut item, &header, size);
                    break;
                }
            }
        }
        item.name = name.unwrap_or(item.name);
        item.link = link.unwrap_or(item.link);
        extend(&mut item, extended)?;
        Ok(Some(item))
    }

    /// Reads a header; false at the end.
    fn header(&mut self, header: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(room) = header.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.input.read(room)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        if header.iter().all(|byte| *byte == 0) {
            self.tail.extend_from_slice(header);
            return Ok(false);
        }
        Ok(true)
    }

    fn extension(&mut self, raw: &mut Vec<u8>, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid("the attributes of an entry are too long"));
        }
        let whole = usize::try_from(size.next_multiple_of(BLOCK as u64)).unwrap_or(0);
        let mut data = vec![0; whole];
        self.input.read_exact(&mut data)?;
        raw.extend_from_slice(&data);
        data.truncate(usize::try_from(size).unwrap_or(0));
        Ok(data)
    }
}

fn field(header: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    header.get(at..at + length).unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// A number in octal digits, or in binary where the first bit says so.
fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.first()? & 0x80 != 0 {
        let bytes = bytes.get(bytes.len().saturating_sub(8)..)?;
        return Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let digits = text(bytes);
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn describe(item: &mut Item, header: &[u8; BLOCK], size: u64) {
    let count = |at, length| number(field(header, at, length)).unwrap_or(0);
    item.name = text(field(header, 0, 100));
    let is_ustar = field(header, 257, 6) == b"ustar\0";
    let prefix = text(field(header, 345, 155));
    if is_ustar && !prefix.is_empty() {
        item.name = format!("{prefix}/{}", item.name);
    }
    item.link = text(field(header, 157, 100));
    item.kind = header[156];
    (item.mode, item.uid, item.gid) = (count(100, 8), count(108, 8), count(116, 8));
    (item.user, item.group) = (text(field(header, 265, 32)), text(field(header, 297, 32)));
    item.modified = i64::try_from(count(136, 12)).unwrap_or(0);
    item.device = (count(329, 8), count(337, 8));
    item.size = size;
}

/// `length key=value\n`, again and again.
fn attributes(data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut rest) = (BTreeMap::new(), data);
    while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
        let length = std::str::from_utf8(rest.get(..space).unwrap_or_default())
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(record) = length.and_then(|length: usize| rest.get(space + 1..length)) else { break };
        if let Some(equals) = record.iter().position(|byte| *byte == b'=') {
            let key = String::from_utf8_lossy(record.get(..equals).unwrap_or_default()).into_owned();
            let value = record.get(equals + 1..record.len().saturating_sub(1)).unwrap_or_default().to_vec();
            found.insert(key, value);
        }
        rest = rest.get(space + 1 + record.len()..).unwrap_or_default();
    }
    found
}

/// What the attributes of an entry say counts more than its header.
fn extend(item: &mut Item, attributes: BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for (key, value) in attributes {
        let text = String::from_utf8_lossy(&value).into_owned();
        let count =
            || text.parse::<u64>().map_err(|_| invalid("an attribute that should be a number is none"));
        match key.as_str() {
            "path" => item.name = text,
            "linkpath" => item.link = text,
            "size" => item.size = count()?,
            "uid" => item.uid = count()?,
            "gid" => item.gid = count()?,
            "uname" => item.user = text,
            "gname" => item.group = text,
            "mtime" => {
                let seconds = text.split('.').next().unwrap_or_default();
                item.modified = seconds.parse().unwrap_or(item.modified);
            }
            _ if key.starts_with("GNU.sparse.") => {
                return Err(invalid("an archive with sparse files is not converted"));
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    item.xattrs.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}
