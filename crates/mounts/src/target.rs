//! Where something is mounted.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_types::{Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::system;

/// A folder, or a sub-path of it, which is resolved inside of it however its links point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub folder: &'a Path,
    pub inner: &'a str,
}

/// A path for the kernel, good as long as this lives.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    path: Cow<'a, Path>,
    _held: Option<OwnedFd>,
}

impl Place<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl<'a> Target<'a> {
    /// Finds the place as it is now: what was mounted on it since is part of the answer.
    pub(crate) fn place(&self) -> Result<Place<'a>> {
        if self.inner.is_empty() {
            return Ok(Place { path: Cow::Borrowed(self.folder), _held: None });
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = openat(CWD, self.folder, flags | OFlags::DIRECTORY, Mode::empty()).map_err(system)?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(root, self.inner, flags, Mode::empty(), inside).map_err(system);
        let found = found.with_context(|| format!("mount target {}", self.inner))?;
        // Not its name: that could lead elsewhere by the time it is used.
        let path = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        Ok(Place { path: Cow::Owned(path), _held: Some(found) })
    }
}
