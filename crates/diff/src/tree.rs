//! The tree that a layer goes into, reached only through directory handles.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corten_types::{Error, Result, ResultExt};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Uid, XattrFlags, fchmod, fchown,
    fsetxattr, mkdirat, mknodat, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How removals by a layer are written down.
#[derive(Debug)]
pub(crate) enum Whiteouts {
    /// As overlayfs reads them in an upper directory, with the prefix of its attributes.
    Overlay { attribute: &'static str, lower: Vec<OwnedFd> },
    /// By removing.
    Remove,
}

/// A tree being filled.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    whiteouts: Whiteouts,
    /// The folder that was used last: archives list a folder's files together.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Folders that were made without being listed and without a layer below that has them.
    implied: BTreeSet<PathBuf>,
    /// What this layer wrote, for opaque markers that come late.
    written: HashSet<PathBuf>,
}

pub(crate) fn system(error: Errno) -> Error {
    Error::from(std::io::Error::from(error))
}

impl Tree {
    pub(crate) fn new(root: &Path, whiteouts: Whiteouts) -> Result<Self> {
        let root = openat(CWD, root, FOLDER, Mode::empty())
            .map_err(system)
            .with_context(|| root.display().to_string())?;
        Ok(Self { root, whiteouts, last: None, implied: BTreeSet::new(), written: HashSet::new() })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A folder that exists.
    pub(crate) fn find(&self, folder: &Path) -> Result<OwnedFd, Errno> {
        let path = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        openat2(&self.root, path, FOLDER, Mode::empty(), INSIDE)
    }

    /// A folder, made if need be.
    pub(crate) fn folder(&mut self, folder: &Path) -> Result<Rc<OwnedFd>> {
        if let Some((path, handle)) = &self.last
            && path == folder
        {
            return Ok(Rc::clone(handle));
        }
        let handle = match self.find(folder) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => self.make(folder)?,
            Err(error) => return Err(system(error)).with_context(|| folder.display().to_string()),
        };
        let handle = Rc::new(handle);
        self.last = Some((folder.to_owned(), Rc::clone(&handle)));
        Ok(handle)
    }

    /// Makes a folder that the archive did not list, and those above it, as the layers below have them.
    fn make(&mut self, folder: &Path) -> Result<OwnedFd> {
        let parent_path = folder.parent().unwrap_or(Path::new(""));
        let name = folder.file_name().unwrap_or(OsStr::new("."));
        let parent = self.folder(parent_path)?;
        match mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let handle =
                    openat(parent.as_fd(), name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(system)?;
                match self.below(folder) {
                    Some(stat) => own(&handle, &stat)?,
                    None => {
                        self.implied.insert(folder.to_owned());
                        fchmod(&handle, Mode::from_raw_mode(0o755)).map_err(system)?;
                    }
                }
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(system(error)).with_context(|| folder.display().to_string()),
        }
        self.find(folder).map_err(system).with_context(|| folder.display().to_string())
    }

    /// Folders whose attributes nobody told.
    pub(crate) fn implied(&self) -> Vec<PathBuf> {
        self.implied.iter().cloned().collect()
    }

    /// Notes that the archive lists a folder after all.
    pub(crate) fn listed(&mut self, folder: &Path) {
        self.implied.remove(folder);
    }

    /// Gives a folder the attributes that it has below.
    pub(crate) fn inherit(&self, folder: &Path) -> Result<()> {
        // It may have been removed again by the layer itself.
        let (Some(stat), Ok(handle)) = (self.below(folder), self.find(folder)) else { return Ok(()) };
        own(&handle, &stat).with_context(|| folder.display().to_string())
    }

    /// The same folder in the nearest layer below.
    fn below(&self, folder: &Path) -> Option<Stat> {
        let Whiteouts::Overlay { lower, .. } = &self.whiteouts else { return None };
        lower.iter().find_map(|root| {
            let handle = openat2(root, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE).ok()?;
            let stat = rustix::fs::fstat(handle).ok()?;
            (FileType::from_raw_mode(stat.st_mode) == FileType::Directory).then_some(stat)
        })
    }

    /// Notes that this layer wrote something, and forgets a handle that it may have replaced.
    pub(crate) fn wrote(&mut self, path: PathBuf) {
        if matches!(self.whiteouts, Whiteouts::Remove) {
            self.written.insert(path);
        }
    }

    /// Removes whatever is under a name.
    pub(crate) fn remove(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        self.last = None;
        remove_at(parent, name, 0)
    }

    /// Writes down that something of the layers below is gone.
    pub(crate) fn white_out(&mut self, folder: &Path, name: &OsStr) -> Result<()> {
        let parent = match (&self.whiteouts, self.find(folder)) {
            (Whiteouts::Remove, Err(_)) => return Ok(()),
            (_, Ok(parent)) => Rc::new(parent),
            (Whiteouts::Overlay { .. }, Err(_)) => self.folder(folder)?,
        };
        self.remove(parent.as_fd(), name)?;
        if matches!(self.whiteouts, Whiteouts::Overlay { .. }) {
            mknodat(parent.as_fd(), name, FileType::CharacterDevice, Mode::empty(), 0).map_err(system)?;
        }
        Ok(())
    }

    /// Writes down that a folder hides what the layers below have in it.
    pub(crate) fn make_opaque(&mut self, folder: &Path) -> Result<()> {
        let handle = self.folder(folder)?;
        if let Whiteouts::Overlay { attribute, .. } = &self.whiteouts {
            return fsetxattr(handle.as_fd(), *attribute, b"y", XattrFlags::empty()).map_err(system);
        }
        self.last = None;
        for name in entries(handle.as_fd())? {
            let path = folder.join(&name);
            if !self.written.iter().any(|written| written.starts_with(&path)) {
                remove_at(handle.as_fd(), &name, 0)?;
            }
        }
        Ok(())
    }
}

/// Owner and mode, in this order: a change of owner clears bits of the mode.
fn own(folder: &OwnedFd, stat: &Stat) -> Result<()> {
    fchown(folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(system)?;
    fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(system)
}

/// Depth beyond which a tree is not removed: nobody's is that deep.
const DEPTH: usize = 1024;

fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if depth < DEPTH => {}
        Err(error) => return Err(system(error)).with_context(|| name.display().to_string()),
    }
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(system)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(system(Errno::PERM)).with_context(|| name.display().to_string());
    }
    let folder = openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(system)?;
    for entry in entries(folder.as_fd())? {
        remove_at(folder.as_fd(), &entry, depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(system).with_context(|| name.display().to_string())
}

/// Names in a folder.
fn entries(folder: BorrowedFd<'_>) -> Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let folder = openat(folder, ".", FOLDER, Mode::empty()).map_err(system)?;
    let mut buffer = Vec::with_capacity(8192);
    let mut names = Vec::new();
    let mut list = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = list.next() {
        let entry = entry.map_err(system)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}
