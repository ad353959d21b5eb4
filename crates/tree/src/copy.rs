//! Copies of whole trees, with everything that the file system keeps about them.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    copy_file_range, fstat, ftruncate, getxattr, ioctl_ficlone, lgetxattr, linkat, listxattr, llistxattr,
    lsetxattr, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::root::Root;
use crate::walk::{FOLDER, Place, itself, kind, names};

/// The largest value that the kernel takes for an attribute, and the longest list of their names.
const ATTRIBUTE: usize = 64 << 10;

/// Copies what is in one folder into another one that is empty, and the folder's own attributes: owners,
/// modes, times, extended attributes, links, devices and holes. Blocks are shared where the file system can.
/// Sockets are left out.
///
/// # Errors
/// Those of the kernel.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let open = |path: &Path| openat(CWD, path, FOLDER, Mode::empty());
    let mut copy = Copy {
        from: Place::at(open(from)?),
        to: Place::at(open(to)?),
        top: Root::open(to)?,
        here: PathBuf::new(),
        linked: HashMap::new(),
        shares_blocks: true,
    };
    let mut pending = vec![copy.folder()?];
    while let Some(folders) = pending.last_mut() {
        match folders.pop() {
            Some(name) => {
                copy.down(&name)?;
                pending.push(copy.folder()?);
            }
            None => {
                pending.pop();
                // Last, since filling it changed its times.
                finish(copy.from.handle(), copy.to.handle(), c".", &fstat(copy.from.handle())?)?;
                copy.up()?;
            }
        }
    }
    Ok(())
}

struct Copy {
    from: Place,
    to: Place,
    top: Root,
    /// Where it is, below the top.
    here: PathBuf,
    /// The first copy of each inode that has several names.
    linked: HashMap<u64, PathBuf>,
    shares_blocks: bool,
}

impl Copy {
    fn down(&mut self, name: &CStr) -> io::Result<()> {
        self.from.down(name)?;
        self.to.down(name)?;
        self.here.push(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())));
        Ok(())
    }

    fn up(&mut self) -> io::Result<()> {
        if self.from.depth() > 0 {
            self.from.up()?;
            self.to.up()?;
            self.here.pop();
        }
        Ok(())
    }

    /// Copies what is in the folder, and names the folders, which are still empty.
    fn folder(&mut self) -> io::Result<Vec<CString>> {
        let mut folders = Vec::new();
        for name in names(self.from.handle())? {
            let stat = statat(self.from.handle(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if kind(&stat) == FileType::Directory {
                mkdirat(self.to.handle(), &name, Mode::RWXU)?;
                folders.push(name);
            } else if !self.link(&name, &stat)? {
                self.leaf(&name, &stat)?;
            }
        }
        Ok(folders)
    }

    /// Whether it could be linked to a copy that is there already.
    fn link(&mut self, name: &CStr, stat: &Stat) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let path = self.here.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let Some(first) = self.linked.get(&stat.st_ino) else {
            self.linked.insert(stat.st_ino, path);
            return Ok(false);
        };
        let folder = self.top.folder(first.parent().unwrap_or(Path::new("")));
        let linked = folder.and_then(|folder| {
            linkat(folder, first.file_name().unwrap_or_default(), self.to.handle(), name, AtFlags::empty())
        });
        match linked {
            Ok(()) => Ok(true),
            // Too many links, or too deep for a path: another copy then.
            Err(Errno::MLINK | Errno::NAMETOOLONG) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn leaf(&mut self, name: &CStr, stat: &Stat) -> io::Result<()> {
        let (from, to) = (self.from.handle(), self.to.handle());
        let private = Mode::RUSR | Mode::WUSR;
        match kind(stat) {
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(from, name, OFlags::RDONLY | flags, Mode::empty())?;
                let made = openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags, private)?;
                self.shares_blocks = self.shares_blocks && clone(&source, &made)?;
                if !self.shares_blocks {
                    copy_data(&source, &made, u64::try_from(stat.st_size).unwrap_or(0))?;
                }
            }
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?,
            FileType::Socket => return Ok(()),
            kind => mknodat(to, name, kind, private, stat.st_rdev)?,
        }
        finish(from, to, name, stat)
    }
}

/// Whether the blocks could be shared.
fn clone(from: &OwnedFd, to: &OwnedFd) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies data and keeps holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> io::Result<()> {
    ftruncate(to, size)?;
    let mut position = 0;
    while position < size {
        let start = match seek(from, rustix::fs::SeekFrom::Data(position)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, rustix::fs::SeekFrom::Hole(start))?.min(size);
        copy_range(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let length = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
            // It became shorter meanwhile.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut buffer, mut position) = (vec![0; 128 << 10], start);
    while position < end {
        let room = buffer.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        let count = rustix::io::pread(from, buffer.get_mut(..room).unwrap_or_default(), position)?;
        let mut data = buffer.get(..count).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        while !data.is_empty() {
            let count = rustix::io::pwrite(to, data, position)?;
            data = data.get(count..).unwrap_or_default();
            position += count as u64;
        }
    }
    Ok(())
}

/// Owner, then attributes and mode, which a change of owner takes away, then times.
fn finish(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    let text = std::ffi::OsStr::from_bytes(name.to_bytes());
    copy_attributes(&itself(from).join(text), &itself(to).join(text))?;
    if kind(stat) != FileType::Symlink {
        let handle = openat(to, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(CWD, itself(handle.as_fd()), mode, AtFlags::empty())?;
    }
    let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Names and values of extended attributes.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes of an open file or folder, if only opened as a path; none where the file system has none.
///
/// # Errors
/// Those of the kernel.
pub fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let path = itself(file);
    read_attributes(|list| listxattr(&path, list), |name, value| getxattr(&path, name, value))
}

fn attributes_at(path: &Path) -> io::Result<Attributes> {
    read_attributes(|list| llistxattr(path, list), |name, value| lgetxattr(path, name, value))
}

fn read_attributes(
    names: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Attributes> {
    let mut list = vec![0; ATTRIBUTE];
    let length = match names(&mut list) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    list.truncate(length);
    let (mut found, mut value) = (Vec::new(), Vec::new());
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        value.resize(ATTRIBUTE, 0);
        match get(name, &mut value) {
            Ok(length) => found.push((name.to_vec(), value.get(..length).unwrap_or_default().to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    for (name, value) in attributes_at(from)? {
        match lsetxattr(to, name.as_slice(), &value, XattrFlags::empty()) {
            // Another file system, or another security module.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_copy_has_all_that_the_original_has() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/tool"), "#!").unwrap();
        std::os::unix::fs::chown(from.join("a/tool"), Some(1), Some(2)).unwrap();
        std::fs::set_permissions(from.join("a/tool"), PermissionsExt::from_mode(0o6755)).unwrap();
        let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        rustix::fs::setxattr(from.join("a/tool"), "security.capability", capability, XattrFlags::empty())
            .unwrap();
        std::fs::hard_link(from.join("a/tool"), from.join("a/b/same")).unwrap();
        let holes = std::fs::File::create(from.join("holes")).unwrap();
        holes.write_all_at(b"middle", 1 << 30).unwrap();
        holes.set_len(2 << 30).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("link")).unwrap();
        mknodat(CWD, from.join("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
            .unwrap();
        let time = Timespec { tv_sec: 1_000_000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        for path in ["a/tool", "a/b", "link", "a", ""] {
            utimensat(CWD, from.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        copy(&from, &to).unwrap();
        for path in ["", "a", "a/b", "a/tool", "a/b/same", "link", "null", "holes"] {
            let (old, new) = (from.join(path), to.join(path));
            let stat = |path: &Path| {
                let stat = std::fs::symlink_metadata(path).unwrap();
                let nanos = (stat.mtime(), stat.mtime_nsec());
                (stat.mode(), stat.uid(), stat.gid(), stat.rdev(), stat.nlink(), stat.len(), nanos)
            };
            assert_eq!(stat(&new), stat(&old), "{path}");
        }
        let mut value = [0; 64];
        let length = lgetxattr(to.join("a/b/same"), "security.capability", &mut value).unwrap();
        assert_eq!(&value[..length], capability);
        assert_eq!(
            std::fs::metadata(to.join("a/tool")).unwrap().ino(),
            std::fs::metadata(to.join("a/b/same")).unwrap().ino()
        );
        assert!(std::fs::metadata(to.join("holes")).unwrap().blocks() < 64);
        let mut middle = [0; 6];
        std::fs::File::open(to.join("holes")).unwrap().read_exact_at(&mut middle, 1 << 30).unwrap();
        assert_eq!(&middle, b"middle");
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
    }
}
