//! Where an entry goes: a name in an open folder.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_types::{Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, chmodat, openat, statat};
use rustix::io::Errno;

/// A name in an open folder. Nothing that is done to it follows a link.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub parent: BorrowedFd<'a>,
    pub name: &'a OsStr,
}

impl Place<'_> {
    /// What is there.
    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes what is there, with everything below.
    pub(crate) fn remove(&self) -> Result<()> {
        let name = CString::new(self.name.as_bytes());
        let name = name.map_err(|_| Error::invalid_argument("a name with NUL in it"))?;
        Ok(corten_tree::remove(self.parent, &name)?)
    }

    /// Sets the mode of what is there, which is no link.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        // There is no call that does not follow a link; so it is reached through a handle that was not
        // followed, and no link can lead the change elsewhere.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(self.parent, self.name, flags, Mode::empty())?;
        chmodat(CWD, itself(handle.as_fd()), Mode::from_raw_mode(mode), AtFlags::empty())
    }

    /// A path by which calls that take no handle reach exactly this place.
    pub(crate) fn path(&self) -> PathBuf {
        itself(self.parent).join(self.name)
    }
}

fn itself(handle: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string())
}
