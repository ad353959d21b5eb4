//! Below which folders an activation may make something. No link is followed on the way: what is mounted
//! there may come from an image.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use corten_types::{Error, Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::system;

/// The folders, as absolute paths.
#[derive(Clone, Debug)]
pub(crate) struct Roots(pub Vec<PathBuf>);

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Roots {
    /// The folder that `path` lies in, made with what leads to it, and the last name.
    pub(crate) fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let outside = || Error::not_implemented(format!("{} is below no allowed root", path.display()));
        let root = self.0.iter().find(|root| path.starts_with(root)).ok_or_else(outside)?;
        let mut names = Vec::new();
        for component in path.strip_prefix(root).unwrap_or(path).components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::CurDir => {}
                _ => return Err(outside()),
            }
        }
        let last = names.pop().ok_or_else(outside)?;
        let mut folder = openat(CWD, root, FOLDER, Mode::empty()).map_err(system)?;
        for name in names {
            folder = enter(&folder, name).with_context(|| format!("folder of {}", path.display()))?;
        }
        Ok((folder, last))
    }
}

/// A folder, made if it is not there.
fn enter(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    match mkdirat(folder, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(system(error)),
    }
    open(folder, name)
}

/// A folder that is there and no link.
pub(crate) fn open(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(system)
}
