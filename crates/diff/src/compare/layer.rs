//! Changes as the entries of an archive.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io::{Read, Write};

use corten_types::{Error, ErrorClass, Result, ResultExt};
use rustix::fs::{FileType, major, minor};

use super::changes::{Change, There};
use super::side::{CAPABILITY, Side, is_folder, is_linked, kind};
use crate::archive::{Item, Writer};

const BUFFER: usize = 128 << 10;
const WHITEOUT: &[u8] = b".wh.";

/// Device and inode.
type Inode = (u64, u64);

/// A layer being written.
#[derive(Debug)]
pub(crate) struct Layer<'a, W> {
    archive: Writer<W>,
    upper: &'a Side,
    /// No time may be later, in seconds.
    latest: Option<i64>,
    /// Folders that have an entry.
    folders: HashSet<Vec<u8>>,
    /// What has an entry under one of its names.
    sources: HashMap<Inode, Vec<u8>>,
    /// Unchanged names of what may have an entry later.
    names: HashMap<Inode, Vec<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Layer<'a, W> {
    pub(crate) fn new(output: W, upper: &'a Side, latest: Option<i64>) -> Self {
        Self {
            archive: Writer::new(output),
            upper,
            latest,
            folders: HashSet::new(),
            sources: HashMap::new(),
            names: HashMap::new(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Ends it.
    pub(crate) fn finish(self) -> Result<W> {
        Ok(self.archive.finish()?)
    }

    /// Writes a change.
    pub(crate) fn change(&mut self, path: &[u8], change: Change<'_>) -> Result<()> {
        match change {
            Change::Gone => self.whiteout(path),
            Change::There(there) => self.entry(path, &there),
        }
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        self.parents(path)?;
        let (folder, name) = split(path);
        let separator: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let name = [folder, separator, WHITEOUT, name].concat();
        Ok(self.archive.entry(&Item { kind: b'0', name, ..Item::default() })?)
    }

    fn entry(&mut self, path: &[u8], there: &There<'_>) -> Result<()> {
        let Some(mut item) = self.describe(path, there)? else { return Ok(()) };
        let mut others = Vec::new();
        if is_linked(there.stat) {
            let inode = (there.stat.st_dev, there.stat.st_ino);
            if let Some(source) = self.sources.get(&inode) {
                as_link(&mut item, source);
            } else if there.is_unchanged {
                self.names.entry(inode).or_default().push(path.to_vec());
                return Ok(());
            } else {
                self.sources.insert(inode, path.to_vec());
                others = self.names.remove(&inode).unwrap_or_default();
            }
        }
        self.parents(path)?;
        self.write(path, &item, there)?;
        self.data(&item, there)?;
        for name in others {
            as_link(&mut item, path);
            self.parents(&name)?;
            item.name = name;
            self.write(path, &item, there)?;
        }
        Ok(())
    }

    /// The header of an entry.
    fn write(&mut self, path: &[u8], item: &Item, there: &There<'_>) -> Result<()> {
        let capability = there.folder.attribute(there.name, CAPABILITY)?;
        let item = match capability.is_empty() {
            true => item,
            false => &Item { attributes: vec![(CAPABILITY.into(), capability)], ..item.clone() },
        };
        self.archive.entry(item)?;
        if is_folder(there.stat) {
            self.folders.insert(path.to_vec());
        }
        Ok(())
    }

    /// The entry of something; sockets have none.
    fn describe(&self, path: &[u8], there: &There<'_>) -> Result<Option<Item>> {
        let stat = there.stat;
        let mut item = Item {
            name: path.to_vec(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: self.latest.map_or(stat.st_mtime, |latest| latest.min(stat.st_mtime)),
            ..Item::default()
        };
        match kind(stat) {
            FileType::RegularFile => {
                item.kind = b'0';
                item.size = u64::try_from(stat.st_size).unwrap_or(0);
            }
            FileType::Directory => {
                item.kind = b'5';
                item.name.push(b'/');
            }
            FileType::Symlink => {
                item.kind = b'2';
                item.link = there.folder.link(there.name)?;
            }
            FileType::Fifo => item.kind = b'6',
            FileType::CharacterDevice => item.kind = b'3',
            FileType::BlockDevice => item.kind = b'4',
            _ => return Ok(None),
        }
        if matches!(item.kind, b'3' | b'4') {
            item.device = (major(stat.st_rdev), minor(stat.st_rdev));
        }
        Ok(Some(item))
    }

    /// The folders above, each once and from the top, so that they are made as they are here.
    fn parents(&mut self, path: &[u8]) -> Result<()> {
        let mut missing = Vec::new();
        let (mut parent, _) = split(path);
        while !parent.is_empty() && !self.folders.contains(parent) {
            missing.push(parent);
            (parent, _) = split(parent);
        }
        for path in missing.into_iter().rev() {
            let (above, name) = split(path);
            let name = CString::new(name).map_err(|_| Error::internal("a name with NUL in it"))?;
            let Some(folder) = self.upper.folder(above)? else { return Ok(()) };
            let Some(stat) = self.upper.stat(&folder, &name)? else { return Ok(()) };
            let there = There { folder: &folder, name: &name, stat: &stat, is_unchanged: false };
            if let Some(item) = self.describe(path, &there)? {
                self.write(path, &item, &there)?;
            }
        }
        Ok(())
    }

    /// The bytes of a file: as many as were announced.
    fn data(&mut self, item: &Item, there: &There<'_>) -> Result<()> {
        if item.kind != b'0' || item.size == 0 {
            return Ok(());
        }
        let mut file = there.folder.file(there.name)?.take(item.size);
        let mut left = item.size;
        while left > 0 {
            match file.read(&mut self.buffer) {
                Ok(0) => {
                    let text = "the file became shorter while it was read";
                    return Err(Error::new(ErrorClass::Unavailable, text));
                }
                Ok(count) => {
                    self.archive.data(self.buffer.get(..count).unwrap_or_default())?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read"),
            }
        }
        Ok(())
    }
}

fn as_link(item: &mut Item, source: &[u8]) {
    item.kind = b'1';
    item.link = source.to_vec();
    item.size = 0;
}

/// The path of the folder, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// The latest time that a layer may have, in seconds, rounded as the original rounds.
pub(crate) fn latest(time: std::time::SystemTime) -> i64 {
    let timestamp = corten_types::timestamp::from_system(time);
    timestamp.seconds + i64::from(timestamp.nanos >= 500_000_000)
}
