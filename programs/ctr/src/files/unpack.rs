//! An archive as files below a folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_diff::archive::{Entry, Kind, Reader, Time};
use corten_tree::{Root, clean};
use corten_types::{Error, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::about;

/// What files get of what an archive says of them.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// User and group of all of them; without, those that the archive says.
    pub owner: Option<(u32, u32)>,
    /// With what gives rights: setuid and its like, capabilities, access lists.
    pub rights: bool,
}

/// Makes the files of an archive below `base` in `root`. Links in `root` lead around inside of it.
///
/// # Errors
/// Those of the kernel, with the path; FailedPrecondition where a folder would take the place of a file, or a file
/// that of a folder.
pub fn unpack(root: &Root, base: &Path, taken: Taken, input: impl Read) -> Result<()> {
    let mut archive = Reader::new(BufReader::with_capacity(64 << 10, input));
    let mut folders = Vec::new();
    let unpacking = Unpacking { root, base, taken };
    while let Some(entry) = archive.next_entry()? {
        unpacking.entry(entry, &mut archive, &mut folders)?;
    }
    // What is put into a folder changes its time, and its mode may forbid that.
    for (path, entry) in folders.into_iter().rev() {
        let failed = |errno: Errno| about(&path, errno);
        let folder = root.folder(&path).map_err(failed)?;
        unpacking.attributes(&folder, &entry).map_err(failed)?;
        fchmod(&folder, unpacking.mode(&entry)).map_err(failed)?;
        utimensat(&folder, c".", &times(entry.modified), AtFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

struct Unpacking<'a> {
    root: &'a Root,
    base: &'a Path,
    taken: Taken,
}

impl Unpacking<'_> {
    /// Where a name of the archive is in the root.
    fn place(&self, name: &[u8]) -> PathBuf {
        self.base.join(clean(name))
    }

    fn mode(&self, entry: &Entry) -> Mode {
        Mode::from_raw_mode(entry.mode & if self.taken.rights { 0o7777 } else { 0o777 })
    }

    fn entry(
        &self,
        entry: Entry,
        archive: &mut Reader<BufReader<impl Read>>,
        folders: &mut Vec<(PathBuf, Entry)>,
    ) -> Result<()> {
        let path = self.place(&entry.path);
        // The folder that all goes into is there.
        let (Some(name), Some(above)) = (path.file_name().map(OsString::from), path.parent()) else {
            return Ok(());
        };
        if path == self.base {
            return Ok(());
        }
        let parent = self.root.folder(above).map_err(|failed| about(above, failed))?;
        let failed = |errno: Errno| about(&path, errno);
        let time = entry.modified;
        match entry.kind {
            Kind::Folder => {
                match mkdirat(&parent, &name, Mode::RWXU) {
                    Err(Errno::EXIST) => self.check_folder(&path)?,
                    made => made.map_err(failed)?,
                }
                self.own(&parent, &name, &entry).map_err(failed)?;
                folders.push((path, entry));
                return Ok(());
            }
            Kind::File => {
                let mut file = File::from(create(&parent, &name).map_err(|errno| clash(&path, errno))?);
                fill(&mut file, &entry, archive).map_err(|errno| about(&path, errno))?;
                let (uid, gid) = self.ids(&entry);
                fchown(&file, Some(uid), Some(gid)).map_err(failed)?;
                // A change of owner, and what is written, take capabilities away.
                self.attributes(&file, &entry).map_err(failed)?;
                fchmod(&file, self.mode(&entry)).map_err(failed)?;
            }
            _ => self.special(&entry, &parent, &name, &path)?,
        }
        match utimensat(&parent, &name, &times(time), AtFlags::SYMLINK_NOFOLLOW) {
            // Remarks of archivers make nothing.
            Err(Errno::NOENT) if matches!(entry.kind, Kind::Other(_)) => Ok(()),
            set => set.map_err(failed),
        }
    }

    /// Links, pipes and devices.
    fn special(&self, entry: &Entry, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let failed = |errno: Errno| about(path, errno);
        let kind = match entry.kind {
            Kind::Symlink => None,
            Kind::Link => {
                let target = self.place(&entry.link);
                let above = target.parent().unwrap_or(self.base);
                let folder = self.root.folder(above).map_err(|errno| about(above, errno))?;
                remove(parent, name).map_err(|errno| clash(path, errno))?;
                let name_there = target.file_name().unwrap_or_default();
                return linkat(&folder, name_there, parent, name, AtFlags::empty()).map_err(failed);
            }
            Kind::Fifo => Some(FileType::Fifo),
            Kind::Char => Some(FileType::CharacterDevice),
            Kind::Block => Some(FileType::BlockDevice),
            _ => return Ok(()),
        };
        remove(parent, name).map_err(|errno| clash(path, errno))?;
        match kind {
            None => symlinkat(OsStr::from_bytes(&entry.link), parent, name).map_err(failed)?,
            Some(kind) => {
                let device = makedev(entry.device.0, entry.device.1);
                mknodat(parent, name, kind, self.mode(entry), device).map_err(failed)?;
            }
        }
        self.own(parent, name, entry).map_err(failed)?;
        if kind.is_some() {
            chmodat(parent, name, self.mode(entry), AtFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    fn ids(&self, entry: &Entry) -> (Uid, Gid) {
        let (uid, gid) = self.taken.owner.unwrap_or((entry.uid, entry.gid));
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    fn own(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> std::result::Result<(), Errno> {
        let (uid, gid) = self.ids(entry);
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets the extended attributes that are taken over, where the file system has such.
    fn attributes(&self, file: impl AsFd, entry: &Entry) -> std::result::Result<(), Errno> {
        let taken = |name: &[u8]| is_of_users(name) || self.taken.rights && gives_rights(name);
        for (name, value) in entry.attributes.iter().filter(|(name, _)| taken(name)) {
            match fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
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

/// Writes the data of a file; where an archive has none of it stays a hole.
fn fill(file: &mut File, entry: &Entry, archive: &mut Reader<BufReader<impl Read>>) -> std::io::Result<()> {
    let mut write = |file: &mut File, length: u64| {
        let mut left = length;
        while left > 0 {
            let data = archive.data()?;
            let room = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if room == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(data.get(..room).unwrap_or_default())?;
            archive.consume(room);
            left -= room as u64;
        }
        Ok(())
    };
    let Some(fragments) = &entry.fragments else { return write(file, entry.size) };
    file.set_len(entry.size)?;
    for fragment in fragments {
        file.seek(SeekFrom::Start(fragment.offset))?;
        write(file, fragment.length)?;
    }
    Ok(())
}

fn is_of_users(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

fn gives_rights(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
