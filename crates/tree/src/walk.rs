//! Going down and up in a tree with one open folder, however deep it is.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, Stat, fstat, openat};
use rustix::io::Errno;

pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BUFFER: usize = 32 << 10;

/// The path of what a handle holds, for calls that take no handle. It cannot be led elsewhere.
pub(crate) fn itself(handle: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string())
}

/// Calls `each` with the names and kinds in a folder; kinds may be unknown.
pub(crate) fn list(
    folder: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    // A handle of its own, so that reading starts at the beginning.
    let folder = openat(folder, c".", FOLDER, Mode::empty())?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            each(entry.file_name(), entry.file_type())?;
        }
    }
    Ok(())
}

/// The names in a folder.
///
/// # Errors
/// Those of the kernel.
pub fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    list(folder, |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    Ok(names)
}

/// A place in a tree: an open folder, and which folders lie above it.
pub(crate) struct Place {
    folder: OwnedFd,
    /// Device and inode of the folders above, the top first.
    above: Vec<(u64, u64)>,
}

impl Place {
    pub(crate) fn at(folder: OwnedFd) -> Self {
        Self { folder, above: Vec::new() }
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(crate) fn depth(&self) -> usize {
        self.above.len()
    }

    /// Goes into a folder that is here.
    pub(crate) fn down(&mut self, name: &CStr) -> Result<(), Errno> {
        let below = openat(&self.folder, name, FOLDER, Mode::empty())?;
        let here = fstat(&self.folder)?;
        self.above.push((here.st_dev, here.st_ino));
        self.folder = below;
        Ok(())
    }

    /// Goes back, and makes sure that it is where it came from: the tree may be changed meanwhile.
    pub(crate) fn up(&mut self) -> io::Result<()> {
        let above = openat(&self.folder, c"..", FOLDER, Mode::empty())?;
        let stat = fstat(&above)?;
        if self.above.pop() != Some((stat.st_dev, stat.st_ino)) {
            return Err(io::Error::other("a folder was moved meanwhile"));
        }
        self.folder = above;
        Ok(())
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
