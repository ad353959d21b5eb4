//! One entry of an archive into its place.

use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corten_tree::clean;
use corten_types::{Error, Result, ResultExt};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr, makedev, mknodat, openat, symlinkat,
    utimensat,
};
use rustix::io::{Errno, pwrite};

use crate::archive::{Entry, Fragment, Kind, Reader, Time};
use crate::place::Place;
use crate::stream::failure;
use crate::tree::{Tree, is_reserved, system};

const PERMISSIONS: u32 = 0o777;
/// Files from this size on are on their way to disk at once; of smaller ones there is not much.
const WRITEBACK: u64 = 128 << 10;
/// Bytes of a large file that the disk is set to work on at a time.
const WRITEBACK_STEP: u64 = 8 << 20;

/// Writes one entry, in place of what is there.
///
/// # Errors
/// InvalidArgument for what an archive must not say; those of the file system.
pub(crate) fn entry<R: BufRead>(
    tree: &mut Tree,
    place: Place<'_>,
    entry: &Entry,
    reader: &mut Reader<R>,
) -> Result<()> {
    match entry.kind {
        Kind::Folder => folder(tree, place, entry),
        Kind::File => file(tree, place, entry, reader),
        Kind::Symlink => {
            replacing(tree, place, || symlinkat(entry.link.as_slice(), place.parent, place.name))?;
            without_contents(place, entry)
        }
        Kind::Link => hard_link(tree, place, entry),
        Kind::Fifo => node(tree, place, entry, FileType::Fifo),
        Kind::Char => device(tree, place, entry, FileType::CharacterDevice),
        Kind::Block => device(tree, place, entry, FileType::BlockDevice),
        Kind::Other(byte) => {
            Err(Error::invalid_argument(format!("unhandled tar header type {:?}", char::from(byte))))
        }
    }
}

/// Calls `make`, and again after removing what is in the way.
fn replacing<T>(tree: &mut Tree, place: Place<'_>, make: impl Fn() -> Result<T, Errno>) -> Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            tree.remove(place)?;
            make().map_err(system)
        }
        other => other.map_err(system),
    }
}

/// A folder over a folder is merged.
fn folder(tree: &mut Tree, place: Place<'_>, entry: &Entry) -> Result<()> {
    let folder = tree.make_folder(place, entry.mode & PERMISSIONS)?;
    let stat = fstat(&folder).map_err(system)?;
    tree.listed(&stat);
    own_and_attribute(&folder, &stat, entry)
}

fn file<R: BufRead>(tree: &mut Tree, place: Place<'_>, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(entry.mode & PERMISSIONS);
    let file = replacing(tree, place, || openat(place.parent, place.name, flags, mode))?;
    match &entry.fragments {
        None => copy(reader, file.as_fd(), 0, entry.size)?,
        Some(fragments) => scatter(reader, file.as_fd(), fragments, entry.size)?,
    }
    if entry.size >= WRITEBACK {
        // The disk works while the next files are inflated, instead of all at once at the end.
        corten_sys::start_writeback(file.as_fd());
    }
    let stat = fstat(&file).map_err(system)?;
    own_and_attribute(&file, &stat, entry)?;
    futimens(&file, &times(entry)).map_err(system)
}

/// Writes the next bytes of the entry at an offset.
fn copy<R: BufRead>(reader: &mut Reader<R>, to: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    let (mut done, mut started) = (0, 0);
    while done < length {
        let data = reader.data().map_err(failure)?;
        if data.is_empty() {
            return Err(Error::internal("an entry with less data than its reader promised"));
        }
        let room = data.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        match pwrite(to, data.get(..room).unwrap_or_default(), offset + done) {
            Ok(count) => {
                reader.consume(count);
                done += count as u64;
                if done - started >= WRITEBACK_STEP {
                    corten_sys::start_writeback(to);
                    started = done;
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(system(error)),
        }
    }
    Ok(())
}

/// What lies between fragments stays a hole.
fn scatter<R: BufRead>(
    reader: &mut Reader<R>,
    to: BorrowedFd<'_>,
    fragments: &[Fragment],
    size: u64,
) -> Result<()> {
    ftruncate(to, size).map_err(system)?;
    for fragment in fragments {
        copy(reader, to, fragment.offset, fragment.length)?;
    }
    Ok(())
}

/// Owner, mode and attributes of a file or folder, as far as they are not so already: each change costs as
/// much as making the file. A change of owner takes bits of the mode and capabilities away, so it is first.
fn own_and_attribute(file: &OwnedFd, stat: &Stat, entry: &Entry) -> Result<()> {
    let mut mode = stat.st_mode & 0o7777;
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).map_err(system).context("owner")?;
        if (mode | entry.mode) & !PERMISSIONS != 0 {
            // Which bits went with that depends on the kind.
            mode = u32::MAX;
        }
    }
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let is_plain = is_file || FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    for (name, value) in attributes(entry) {
        let set = fsetxattr(file, name, value, XattrFlags::empty());
        tolerate(name, is_plain, set)?;
    }
    if mode != entry.mode {
        fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(system).context("mode")?;
    }
    Ok(())
}

fn node(tree: &mut Tree, place: Place<'_>, entry: &Entry, kind: FileType) -> Result<()> {
    let device = makedev(entry.device.0, entry.device.1);
    let mode = Mode::from_raw_mode(entry.mode & PERMISSIONS);
    replacing(tree, place, || mknodat(place.parent, place.name, kind, mode, device))?;
    without_contents(place, entry)
}

/// User namespaces cannot make devices; containers there get theirs by other means.
fn device(tree: &mut Tree, place: Place<'_>, entry: &Entry, kind: FileType) -> Result<()> {
    if in_user_namespace() { Ok(()) } else { node(tree, place, entry, kind) }
}

fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_whitespace();
    (fields.next(), fields.next(), fields.next()) != (Some("0"), Some("0"), Some("4294967295"))
}

/// Another name of something in the same tree; where it is, is decided inside of the tree. What the entry
/// says of owner, mode and times holds for both.
fn hard_link(tree: &mut Tree, place: Place<'_>, entry: &Entry) -> Result<()> {
    let target = clean(&entry.link);
    let shown = || format!("hard link to {}", target.display());
    let name = target.file_name().ok_or_else(|| Error::invalid_argument("a hard link to the root"))?;
    let folder = tree.find(target.parent().unwrap_or(Path::new(""))).map_err(system).with_context(shown)?;
    let link = || linkat(folder.as_fd(), name, place.parent, place.name, AtFlags::empty());
    replacing(tree, place, link).with_context(shown)?;
    let stat = place.stat().map_err(system)?;
    let times = times(entry);
    let is_the_same = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (entry.uid, entry.gid, entry.mode)
        && stat.st_mtime == times.last_modification.tv_sec
        && i64::try_from(stat.st_mtime_nsec) == Ok(times.last_modification.tv_nsec);
    if is_the_same && entry.attributes.is_empty() { Ok(()) } else { without_contents(place, entry) }
}

/// Owner, attributes, mode and times of what is not opened.
fn without_contents(place: Place<'_>, entry: &Entry) -> Result<()> {
    let (uid, gid) = owner(entry);
    let stat = place.stat().map_err(system)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        chownat(place.parent, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(system)
            .context("owner")?;
    }
    for (name, value) in attributes(entry) {
        let set = lsetxattr(place.path(), name, value, XattrFlags::empty());
        tolerate(name, kind == FileType::RegularFile, set)?;
    }
    if kind != FileType::Symlink {
        place.set_mode(entry.mode).map_err(system).context("mode")?;
    }
    utimensat(place.parent, place.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(system)
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Extended attributes that a layer may set.
fn attributes(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = entry.attributes.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    all.filter(|(name, _)| !is_reserved(name))
}

/// File systems without extended attributes are no obstacle; nor is `user.*` where it cannot be.
fn tolerate(name: &[u8], may_have_user: bool, result: Result<(), Errno>) -> Result<()> {
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if name.starts_with(b"user.") && !may_have_user => Ok(()),
        other => other
            .map_err(system)
            .with_context(|| format!("attribute {}", std::ffi::OsStr::from_bytes(name).display())),
    }
}

/// Times of an entry, as file systems can keep them.
pub(crate) fn times(entry: &Entry) -> Timestamps {
    /// Seconds whose nanoseconds fit into 63 bits.
    const LAST: i64 = i64::MAX / 1_000_000_000;
    let bounded = |time: Time| match time.seconds {
        0..LAST => Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) },
        _ => Timespec { tv_sec: 0, tv_nsec: 0 },
    };
    Timestamps { last_access: bounded(entry.accessed), last_modification: bounded(entry.modified) }
}
