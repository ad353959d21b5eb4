//! An archive as files below a folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_tree::{Root, clean};
use corten_types::{Error, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown,
    linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::about;

/// Who the files belong to.
#[derive(Clone, Copy, Debug)]
pub enum Owner {
    /// Whom the archive says.
    Kept,
    /// One for all; nothing is setuid for them.
    One(u32, u32),
}

/// Makes the files of an archive below `base` in `root`. Links in `root` lead around inside of it.
///
/// # Errors
/// Those of the kernel, with the path; FailedPrecondition where a folder would take the place of a file, or a file
/// that of a folder.
pub fn unpack(root: &Root, base: &Path, owner: Owner, input: impl Read) -> Result<()> {
    let mut archive = Archive::new(input);
    let mut folders = Vec::new();
    let unpacking = Unpacking { root, base, owner };
    for entry in archive.entries()? {
        let mut entry = entry?;
        unpacking.entry(&mut entry, &mut folders)?;
    }
    // What is put into a folder changes its time, and its mode may forbid that.
    for (path, mode, time) in folders.into_iter().rev() {
        let folder = root.folder(&path).map_err(|failed| about(&path, failed))?;
        fchmod(&folder, mode).map_err(|failed| about(&path, failed))?;
        utimensat(&folder, c".", &times(time), AtFlags::empty()).map_err(|failed| about(&path, failed))?;
    }
    Ok(())
}

struct Unpacking<'a> {
    root: &'a Root,
    base: &'a Path,
    owner: Owner,
}

impl Unpacking<'_> {
    /// Where a name of the archive is in the root.
    fn place(&self, name: &[u8]) -> PathBuf {
        self.base.join(clean(name))
    }

    fn entry(&self, entry: &mut Entry<impl Read>, folders: &mut Vec<(PathBuf, Mode, u64)>) -> Result<()> {
        let path = self.place(&entry.path_bytes());
        // The folder that all goes into is there.
        let (Some(name), Some(above)) = (path.file_name().map(OsString::from), path.parent()) else {
            return Ok(());
        };
        if path == self.base {
            return Ok(());
        }
        let parent = self.root.folder(above).map_err(|failed| about(above, failed))?;
        let failed = |errno: Errno| about(&path, errno);
        let header = entry.header();
        let mut mode = header.mode()? & 0o7777;
        if matches!(self.owner, Owner::One(..)) {
            mode &= 0o777;
        }
        let mode = Mode::from_raw_mode(mode);
        let time = header.mtime()?;
        let kind = header.entry_type();
        if kind == EntryType::Directory {
            match mkdirat(&parent, &name, Mode::RWXU) {
                Err(Errno::EXIST) => self.check_folder(&path)?,
                made => made.map_err(failed)?,
            }
            self.own(&parent, &name, entry).map_err(failed)?;
            folders.push((path, mode, time));
            return Ok(());
        }
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let mut file = File::from(create(&parent, &name).map_err(|errno| clash(&path, errno))?);
            std::io::copy(entry, &mut file).map_err(|errno| about(&path, errno))?;
            if let Some((uid, gid)) = self.ids(entry)? {
                fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
            }
            fchmod(&file, mode).map_err(failed)?;
        } else {
            self.special(entry, &parent, &name, &path, mode)?;
        }
        utimensat(&parent, &name, &times(time), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Links, pipes and devices.
    fn special(
        &self,
        entry: &Entry<impl Read>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        mode: Mode,
    ) -> Result<()> {
        let failed = |errno: Errno| about(path, errno);
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Symlink => None,
            EntryType::Link => {
                let target = self.place(&entry.link_name_bytes().unwrap_or_default());
                let above = target.parent().unwrap_or(self.base);
                let folder = self.root.folder(above).map_err(|errno| about(above, errno))?;
                remove(parent, name).map_err(|errno| clash(path, errno))?;
                let name_there = target.file_name().unwrap_or_default();
                return linkat(&folder, name_there, parent, name, AtFlags::empty()).map_err(failed);
            }
            EntryType::Fifo => Some(FileType::Fifo),
            EntryType::Char => Some(FileType::CharacterDevice),
            EntryType::Block => Some(FileType::BlockDevice),
            // Remarks of archivers.
            _ => return Ok(()),
        };
        remove(parent, name).map_err(|errno| clash(path, errno))?;
        match kind {
            None => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), parent, name).map_err(failed)?;
            }
            Some(kind) => {
                // Some archivers leave the numbers of pipes away.
                let number = |found: std::io::Result<Option<u32>>| found.ok().flatten().unwrap_or(0);
                let device = makedev(number(header.device_major()), number(header.device_minor()));
                mknodat(parent, name, kind, mode, device).map_err(failed)?;
            }
        }
        self.own(parent, name, entry).map_err(failed)?;
        if kind.is_some() { chmodat(parent, name, mode, AtFlags::empty()).map_err(failed) } else { Ok(()) }
    }

    fn ids(&self, entry: &Entry<impl Read>) -> Result<Option<(u32, u32)>> {
        match self.owner {
            Owner::One(uid, gid) => Ok(Some((uid, gid))),
            Owner::Kept => {
                let id =
                    |id: u64| u32::try_from(id).map_err(|_| Error::invalid_argument("an owner out of range"));
                Ok(Some((id(entry.header().uid()?)?, id(entry.header().gid()?)?)))
            }
        }
    }

    fn own(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry<impl Read>,
    ) -> std::result::Result<(), Errno> {
        let Ok(Some((uid, gid))) = self.ids(entry) else { return Err(Errno::INVAL) };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Something has a folder's name already: a folder, or a link to one that is inside.
    fn check_folder(&self, path: &Path) -> Result<()> {
        match self.root.folder(path) {
            Ok(_) => Ok(()),
            Err(Errno::NOTDIR) => Err(Error::failed_precondition(format!(
                "cannot overwrite {} with a folder: it is none",
                path.display()
            ))),
            Err(errno) => Err(about(path, errno)),
        }
    }
}

fn clash(path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ISDIR => {
            Error::failed_precondition(format!("cannot overwrite folder {} with a file", path.display()))
        }
        errno => about(path, errno),
    }
}

/// Takes away what has the name, unless it is a folder.
fn remove(parent: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other),
    }
}

/// A new file. What is mounted on its name cannot be replaced, and is written to.
fn create(parent: &OwnedFd, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match remove(parent, name) {
        Ok(()) => openat(parent, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR),
        Err(Errno::BUSY) => {
            // Neither a pipe nor a device: they could block, or do things.
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::BUSY);
            }
            openat(parent.as_fd(), name, flags | OFlags::TRUNC, Mode::empty())
        }
        Err(other) => Err(other),
    }
}

fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
