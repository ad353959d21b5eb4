//! One of the two trees, reached through handles however deep it is.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corten_types::{Error, ErrorClass, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, lgetxattr, llistxattr, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::place::Place;
use crate::tree::system;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Longest value and list of extended attributes.
const ATTRIBUTE: usize = 64 << 10;
pub(crate) const CAPABILITY: &str = "security.capability";

/// A tree.
#[derive(Debug)]
pub(crate) struct Side {
    root: OwnedFd,
    /// Whether it is the raw layer of an overlay, in which devices 0:0 mean that something is gone.
    pub has_whiteouts: bool,
}

/// An open folder of a tree.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Side {
    pub(crate) fn open(path: &Path, has_whiteouts: bool) -> Result<Self> {
        let root = openat(CWD, path, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(system)?;
        Ok(Self { root, has_whiteouts })
    }

    /// The folder at a path without links; nothing if it is gone.
    pub(crate) fn folder(&self, path: &[u8]) -> Result<Option<Folder>> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        loop {
            match openat2(&self.root, path, FOLDER, Mode::empty(), resolve) {
                Ok(handle) => return Ok(Some(Folder(handle))),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(system(error)),
            }
        }
    }

    /// What is in a folder under a name; nothing if it counts as gone.
    pub(crate) fn stat(&self, folder: &Folder, name: &CStr) -> Result<Option<Stat>> {
        match statat(&folder.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.has_whiteouts && is_whiteout(&stat) => Ok(None),
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(system(error)),
        }
    }
}

impl Folder {
    /// The names in it, ordered.
    pub(crate) fn names(&self) -> Result<BTreeSet<CString>> {
        Ok(corten_tree::names(self.0.as_fd())?.into_iter().collect())
    }

    /// A folder in it; nothing if it is gone.
    pub(crate) fn folder(&self, name: &CStr) -> Result<Option<Self>> {
        match openat(&self.0, name, FOLDER, Mode::empty()) {
            Ok(handle) => Ok(Some(Self(handle))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(system(error)),
        }
    }

    /// A regular file in it.
    pub(crate) fn file(&self, name: &CStr) -> Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::empty()).map_err(system)?.into())
    }

    /// The target of a link.
    pub(crate) fn link(&self, name: &CStr) -> Result<Vec<u8>> {
        Ok(readlinkat(&self.0, name, Vec::new()).map_err(system)?.into_bytes())
    }

    fn place<'a>(&'a self, name: &'a CStr) -> Place<'a> {
        Place { parent: self.0.as_fd(), name: OsStr::from_bytes(name.to_bytes()) }
    }

    /// The names of the extended attributes of something in it, each ended by NUL.
    pub(crate) fn attributes(&self, name: &CStr) -> Result<Vec<u8>> {
        let mut list = vec![0; ATTRIBUTE];
        match llistxattr(self.place(name).path(), &mut *list) {
            Ok(length) => list.truncate(length),
            Err(Errno::NOTSUP | Errno::NOENT) => list.clear(),
            Err(error) => return Err(system(error)),
        }
        Ok(list)
    }

    /// An extended attribute of something in it; empty if there is none.
    pub(crate) fn attribute(&self, name: &CStr, attribute: &str) -> Result<Vec<u8>> {
        let mut value = vec![0; 512];
        loop {
            match lgetxattr(self.place(name).path(), attribute, &mut *value) {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(value);
                }
                Err(Errno::RANGE) if value.len() < ATTRIBUTE => value.resize(ATTRIBUTE, 0),
                Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => return Ok(Vec::new()),
                Err(error) => return Err(system(error)),
            }
        }
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn is_folder(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// A name of several, of what is no folder.
pub(crate) fn is_linked(stat: &Stat) -> bool {
    !is_folder(stat) && stat.st_nlink > 1
}

/// What a comparison says that was given up.
pub(crate) fn canceled() -> Error {
    Error::new(ErrorClass::Canceled, "context canceled")
}
