//! One entry of an archive into its folder.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corten_types::{Error, Result, ResultExt};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, ftruncate, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use crate::names::clean;
use crate::tree::{Tree, system};

/// Attributes of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub seconds: i64,
    pub nanos: i64,
    /// Names and values.
    pub extended: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    pub(crate) fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.seconds, tv_nsec: self.nanos.clamp(0, 999_999_999) };
        Timestamps { last_access: time, last_modification: time }
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// Where an entry goes.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub parent: BorrowedFd<'a>,
    pub name: &'a OsStr,
}

impl Place<'_> {
    /// A path by which calls without a handle reach exactly this place.
    fn path(&self) -> std::path::PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(self.name)
    }

    /// Calls `make`, and again after removing what is in the way.
    fn replacing<T>(&self, tree: &mut Tree, make: impl Fn() -> Result<T, Errno>) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                tree.remove(self.parent, self.name)?;
                make().map_err(system)
            }
            other => other.map_err(system),
        }
    }
}

/// Writes one entry.
pub(crate) fn write<R: Read>(
    tree: &mut Tree,
    place: Place<'_>,
    entry: &mut tar::Entry<'_, R>,
    attributes: &Attributes,
) -> Result<()> {
    let link = || -> Result<Vec<u8>> {
        let name = entry.link_name_bytes().filter(|name| !name.is_empty());
        Ok(name.ok_or_else(|| Error::invalid_argument("a link without a target"))?.into_owned())
    };
    match entry.header().entry_type() {
        EntryType::Directory => directory(tree, place, attributes),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            file(tree, place, entry, attributes)
        }
        EntryType::Symlink => {
            let target = link()?;
            place.replacing(tree, || symlinkat(target.as_slice(), place.parent, place.name))?;
            special(place, attributes, false)
        }
        EntryType::Link => hard_link(tree, place, &link()?),
        EntryType::Fifo => {
            let mode = Mode::from_raw_mode(0o600);
            place.replacing(tree, || mknodat(place.parent, place.name, FileType::Fifo, mode, 0))?;
            special(place, attributes, true)
        }
        kind @ (EntryType::Char | EntryType::Block) => {
            let kind =
                if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
            let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
            let device =
                makedev(number(entry.header().device_major()), number(entry.header().device_minor()));
            let mode = Mode::from_raw_mode(0o600);
            place.replacing(tree, || mknodat(place.parent, place.name, kind, mode, device))?;
            special(place, attributes, true)
        }
        EntryType::XGlobalHeader => Ok(()),
        other => Err(Error::invalid_argument(format!("unhandled tar header type {}", other.as_byte()))),
    }
}

/// A folder over a folder is merged.
fn directory(tree: &mut Tree, place: Place<'_>, attributes: &Attributes) -> Result<()> {
    if let Err(error) = mkdirat(place.parent, place.name, Mode::from_raw_mode(0o700)) {
        if error != Errno::EXIST {
            return Err(system(error));
        }
        let stat = statat(place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW).map_err(system)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            tree.remove(place.parent, place.name)?;
            mkdirat(place.parent, place.name, Mode::from_raw_mode(0o700)).map_err(system)?;
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(place.parent, place.name, flags, Mode::empty()).map_err(system)?;
    let (uid, gid) = attributes.owner();
    fchown(&folder, uid, gid).map_err(system)?;
    fchmod(&folder, Mode::from_raw_mode(attributes.mode)).map_err(system)?;
    for (name, value) in &attributes.extended {
        tolerate(name, false, fsetxattr(&folder, name.as_str(), value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// Files from this size on are on their way to disk at once; of smaller ones there is not much.
const WRITEBACK: u64 = 128 << 10;

fn file<R: Read>(
    tree: &mut Tree,
    place: Place<'_>,
    entry: &mut tar::Entry<'_, R>,
    attributes: &Attributes,
) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = place.replacing(tree, || openat(place.parent, place.name, flags, mode))?;
    let size = entry.size();
    let sparse = entry.header().entry_type() == EntryType::GNUSparse;
    let written = copy(entry, file.as_fd(), sparse)?;
    if size >= WRITEBACK {
        // The disk works while the next files are inflated, instead of all at once at the end.
        corten_sys::start_writeback(file.as_fd());
    }
    if written != size {
        return Err(Error::invalid_argument(format!("unexpected EOF: {written} of {size} bytes")));
    }
    let (uid, gid) = attributes.owner();
    fchown(&file, uid, gid).map_err(system)?;
    fchmod(&file, Mode::from_raw_mode(attributes.mode)).map_err(system)?;
    for (name, value) in &attributes.extended {
        tolerate(name, true, fsetxattr(&file, name.as_str(), value, XattrFlags::empty()))?;
    }
    rustix::fs::futimens(&file, &attributes.times()).map_err(system)
}

/// Holes of sparse files stay holes.
fn copy(from: &mut impl Read, to: BorrowedFd<'_>, sparse: bool) -> Result<u64> {
    let (mut buffer, mut total) = (vec![0; 64 << 10], 0_u64);
    loop {
        let count = from.read(&mut buffer)?;
        let data = buffer.get(..count).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        if !(sparse && data.iter().all(|byte| *byte == 0)) {
            let mut rest = data;
            let mut offset = total;
            while !rest.is_empty() {
                let written = rustix::io::pwrite(to, rest, offset).map_err(system)?;
                rest = rest.get(written..).unwrap_or_default();
                offset += written as u64;
            }
        }
        total += data.len() as u64;
    }
    if sparse {
        ftruncate(to, total).map_err(system)?;
    }
    Ok(total)
}

/// A link to something in the same tree; where its name leads is decided inside of the tree.
fn hard_link(tree: &mut Tree, place: Place<'_>, target: &[u8]) -> Result<()> {
    let target = clean(target)?;
    let name = target.file_name().ok_or_else(|| Error::invalid_argument("a hard link to the root"))?;
    let folder = tree.find(target.parent().unwrap_or(Path::new(""))).map_err(system);
    let folder = folder.with_context(|| format!("hard link to {}", target.display()))?;
    let link = || linkat(folder.as_fd(), name, place.parent, place.name, AtFlags::empty());
    place.replacing(tree, link).with_context(|| format!("hard link to {}", target.display()))
}

/// Owner, mode, attributes and times of what has no contents.
fn special(place: Place<'_>, attributes: &Attributes, mode: bool) -> Result<()> {
    let (uid, gid) = attributes.owner();
    chownat(place.parent, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(system)?;
    if mode {
        // Reached through a handle that was not followed, so no link can lead the change elsewhere.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(place.parent, place.name, flags, Mode::empty()).map_err(system)?;
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        chmodat(CWD, path, Mode::from_raw_mode(attributes.mode), AtFlags::empty()).map_err(system)?;
    }
    for (name, value) in &attributes.extended {
        tolerate(name, false, lsetxattr(place.path(), name.as_str(), value, XattrFlags::empty()))?;
    }
    utimensat(place.parent, place.name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW).map_err(system)
}

/// File systems without extended attributes are no obstacle; nor is `user.*` where it cannot be.
fn tolerate(name: &str, is_file: bool, result: Result<(), Errno>) -> Result<()> {
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if name.starts_with("user.") && !is_file => Ok(()),
        other => other.map_err(system).with_context(|| format!("attribute {name}")),
    }
}

/// Reads what an archive says of an entry.
pub(crate) fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Attributes> {
    let header = entry.header();
    // A field that was left blank is zero, as everyone reads it.
    let number = |field: &[u8], value: std::io::Result<u64>, what: &str| -> Result<u32> {
        if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            return Ok(0);
        }
        let value = value.map_err(|error| Error::invalid_argument(format!("{what}: {error}")))?;
        u32::try_from(value).map_err(|_| Error::invalid_argument(format!("{what} {value} is too large")))
    };
    let raw = header.as_old();
    let mut attributes = Attributes {
        uid: number(&raw.uid, header.uid(), "uid")?,
        gid: number(&raw.gid, header.gid(), "gid")?,
        mode: number(&raw.mode, header.mode().map(u64::from), "mode")? & 0o7777,
        seconds: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
        nanos: 0,
        extended: Vec::new(),
    };
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            let text = std::str::from_utf8(value).unwrap_or_default();
            match key {
                b"uid" => attributes.uid = text.parse().unwrap_or(attributes.uid),
                b"gid" => attributes.gid = text.parse().unwrap_or(attributes.gid),
                b"mtime" => time(text, &mut attributes),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && let Ok(name) = std::str::from_utf8(name)
                        && !reserved(name)
                    {
                        attributes.extended.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
    }
    Ok(attributes)
}

/// What overlayfs keeps for itself, a layer must not say.
fn reserved(name: &str) -> bool {
    name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.")
}

/// Seconds with a fraction.
fn time(text: &str, attributes: &mut Attributes) {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let Ok(seconds) = seconds.parse::<i64>() else { return };
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    attributes.seconds = seconds;
    attributes.nanos = digits.parse().unwrap_or(0);
    if text.starts_with('-') && attributes.nanos > 0 {
        attributes.seconds -= 1;
        attributes.nanos = 1_000_000_000 - attributes.nanos;
    }
}

/// Sets a folder's times, which filling it has changed.
pub(crate) fn restore_times(tree: &Tree, folder: &Path, times: &Timestamps) -> Result<()> {
    let handle = match tree.find(folder) {
        Ok(handle) => handle,
        // The layer replaced it later on.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    rustix::fs::futimens(handle, times).map_err(system)
}

/// A name for messages.
pub(crate) fn shown(name: &[u8]) -> String {
    OsStr::from_bytes(name).display().to_string()
}
