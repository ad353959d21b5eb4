//! The tree that a layer goes into, reached only through directory handles.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_tree::Root;
use corten_types::{Error, ErrorClass, Result, ResultExt};
use rustix::fs::{
    FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, fstat,
    futimens, mkdirat, mknodat, openat, readlinkat,
};
use rustix::io::Errno;

use crate::place::Place;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Links on one path, as the kernel has it.
const LINKS: usize = 40;
/// How often a folder is made that others replace meanwhile.
const ATTEMPTS: usize = 100;

/// How removals by a layer are written down.
#[derive(Debug)]
pub(crate) enum Whiteouts {
    /// As overlayfs reads them in an upper directory: with attributes for users or for root.
    Overlay {
        user: bool,
        /// The layers below, the nearest first.
        lower: Vec<PathBuf>,
    },
    /// By removing.
    Remove,
}

/// Memory that lists may take which an archive makes long.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(64 << 20)
    }
}

impl Budget {
    pub(crate) fn spend(&mut self, path: &Path) -> Result<()> {
        let left = self.0.checked_sub(path.as_os_str().len() + 64);
        let exhausted = || Error::new(ErrorClass::ResourceExhausted, "the layer has too many folders");
        self.0 = left.ok_or_else(exhausted)?;
        Ok(())
    }
}

/// A tree being filled.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Root,
    whiteouts: Whiteouts,
    /// The folder that was used last: archives list a folder's files together.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
    /// Folders that were made without being listed and without a layer below that has them, by inode.
    implied: BTreeMap<u64, PathBuf>,
    /// What this layer wrote, with the folders above, where there may be something older: a removal by the
    /// same layer does not mean it. Nothing if all that is there is of this layer.
    written: Option<HashSet<PathBuf>>,
    budget: Budget,
}

pub(crate) fn system(error: Errno) -> Error {
    Error::from(std::io::Error::from(error))
}

impl Tree {
    pub(crate) fn open(path: &Path, whiteouts: Whiteouts) -> Result<Self> {
        let root = Root::open(path).with_context(|| path.display().to_string())?;
        let is_empty = corten_tree::names(root.handle())?.is_empty();
        Ok(Self {
            root,
            whiteouts,
            last: None,
            implied: BTreeMap::new(),
            written: (!is_empty).then(HashSet::new),
            budget: Budget::default(),
        })
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.root.handle()
    }

    // === folders ===

    /// A folder that exists.
    pub(crate) fn find(&self, folder: &Path) -> Result<OwnedFd, Errno> {
        self.root.folder(folder)
    }

    /// A folder, made if need be.
    pub(crate) fn folder(&mut self, folder: &Path) -> Result<Arc<OwnedFd>> {
        if let Some((path, handle)) = &self.last
            && path == folder
        {
            return Ok(Arc::clone(handle));
        }
        let handle = match self.find(folder) {
            // A part of it may be marked as removed by this very layer.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_all(folder),
            other => other.map_err(system),
        };
        let handle = Arc::new(handle.with_context(|| folder.display().to_string())?);
        self.last = Some((folder.to_owned(), Arc::clone(&handle)));
        Ok(handle)
    }

    /// Makes the folders of a path that are not there, following links inside of the tree as the kernel
    /// would, also those that lead nowhere yet.
    fn make_all(&mut self, folder: &Path) -> Result<OwnedFd> {
        let mut pending: Vec<OsString> = folder.iter().rev().map(OsStr::to_owned).collect();
        let (mut here, mut links) = (PathBuf::new(), 0);
        let mut handle = self.find(&here).map_err(system)?;
        while let Some(name) = pending.pop() {
            if name == ".." {
                here.pop();
                handle = self.find(&here).map_err(system)?;
                continue;
            }
            let place = Place { parent: handle.as_fd(), name: &name };
            match openat(place.parent, place.name, FOLDER, Mode::empty()) {
                Ok(next) => handle = next,
                Err(Errno::NOENT) => handle = self.imply(place, &here.join(&name))?,
                Err(Errno::NOTDIR | Errno::LOOP) => match readlinkat(place.parent, place.name, Vec::new()) {
                    Ok(target) => {
                        links += 1;
                        if links > LINKS {
                            return Err(system(Errno::LOOP));
                        }
                        let target = target.into_bytes();
                        if target.first() == Some(&b'/') {
                            here.clear();
                            handle = self.find(&here).map_err(system)?;
                        }
                        pending.extend(steps(&target));
                        continue;
                    }
                    // No link: a mark of removal may give way, nothing else.
                    Err(Errno::INVAL) if self.is_removed(place)? => {
                        handle = self.imply(place, &here.join(&name))?;
                    }
                    Err(Errno::INVAL) => return Err(system(Errno::NOTDIR)),
                    Err(error) => return Err(system(error)),
                },
                Err(error) => return Err(system(error)),
            }
            here.push(&name);
        }
        Ok(handle)
    }

    /// Makes a folder that the archive did not list, as the layers below have it.
    fn imply(&mut self, place: Place<'_>, path: &Path) -> Result<OwnedFd> {
        let folder = self.make_folder(place, 0o755)?;
        if !self.copy_from_below(&folder, path)? {
            fchmod(&folder, Mode::from_raw_mode(0o755)).map_err(system)?;
            self.budget.spend(path)?;
            self.implied.insert(fstat(&folder).map_err(system)?.st_ino, path.to_owned());
        }
        Ok(folder)
    }

    /// Makes a folder, or opens the one that is there.
    pub(crate) fn make_folder(&mut self, place: Place<'_>, mode: u32) -> Result<OwnedFd> {
        let mode = Mode::from_raw_mode(mode);
        let mut hides = false;
        for _ in 0..ATTEMPTS {
            match mkdirat(place.parent, place.name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(system(error)),
            }
            match openat(place.parent, place.name, FOLDER, Mode::empty()) {
                Ok(folder) if hides => {
                    self.hide(folder.as_fd())?;
                    return Ok(folder);
                }
                Ok(folder) => return Ok(folder),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    // A folder in place of one that this layer removed shows nothing of that.
                    hides |= self.is_removed(place)?;
                    self.remove(place)?;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(system(error)),
            }
        }
        Err(system(Errno::AGAIN))
    }

    // === attributes of folders that are not listed ===

    /// Folders whose attributes nobody told.
    pub(crate) fn implied(&self) -> Vec<PathBuf> {
        self.implied.values().cloned().collect()
    }

    /// Notes that the archive lists a folder after all.
    pub(crate) fn listed(&mut self, folder: &Stat) {
        self.implied.remove(&folder.st_ino);
    }

    /// Gives a folder the attributes that it has below.
    pub(crate) fn inherit(&self, folder: &Path) -> Result<()> {
        // It may have been removed again by the layer itself.
        let Ok(handle) = self.find(folder) else { return Ok(()) };
        self.copy_from_below(&handle, folder).map(drop).with_context(|| folder.display().to_string())
    }

    /// Copies owner, mode and extended attributes of the same folder in the nearest layer below, if there is
    /// one that has it.
    fn copy_from_below(&self, folder: &OwnedFd, path: &Path) -> Result<bool> {
        let Whiteouts::Overlay { lower, .. } = &self.whiteouts else { return Ok(false) };
        for layer in lower {
            let layer = Root::open(layer).with_context(|| layer.display().to_string())?;
            match layer.folder(path) {
                Ok(below) => {
                    copy_attributes(&below, folder)?;
                    return Ok(true);
                }
                Err(Errno::NOENT) => {}
                // It is something else there, or removed.
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Sets a folder's times, which filling it has changed.
    pub(crate) fn restore_times(&mut self, folder: &Path, times: &Timestamps) -> Result<()> {
        let (parent, name) = (folder.parent().unwrap_or(Path::new("")), folder.file_name());
        let opened = match &self.last {
            Some((path, handle)) if path == parent => Ok(Arc::clone(handle)),
            _ => self.find(parent).map(Arc::new),
        };
        let handle = opened.and_then(|handle| {
            let folder = openat(&handle, name.unwrap_or_default(), FOLDER, Mode::empty())?;
            self.last = Some((parent.to_owned(), handle));
            Ok(folder)
        });
        match handle {
            Ok(handle) => futimens(handle, times).map_err(system),
            // The layer replaced it later on.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(system(error)),
        }
        .with_context(|| folder.display().to_string())
    }

    // === removals ===

    /// Removes whatever is in a place.
    pub(crate) fn remove(&mut self, place: Place<'_>) -> Result<()> {
        // It may be, or be on the way to, the folder that was used last.
        self.last = None;
        place.remove()
    }

    /// Notes that this layer wrote something.
    pub(crate) fn wrote(&mut self, path: PathBuf) -> Result<()> {
        let Some(written) = &mut self.written else { return Ok(()) };
        let mut path = Some(path);
        while let Some(new) = path.take_if(|path| !written.contains(path)) {
            self.budget.spend(&new)?;
            path = new.parent().map(Path::to_owned);
            written.insert(new);
        }
        Ok(())
    }

    /// Whether what is at a path, if anything, is of this layer.
    fn is_own(&self, path: &Path) -> bool {
        self.written.as_ref().is_none_or(|written| written.contains(path))
    }

    /// Whether there is a mark that something of the layers below is gone.
    fn is_removed(&self, place: Place<'_>) -> Result<bool> {
        let stat = match place.stat() {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(system)?,
        };
        Ok(matches!(self.whiteouts, Whiteouts::Overlay { .. }) && is_whiteout(&stat))
    }

    /// Removes something of the layers below. What this layer has there itself stays: the order of entries
    /// in an archive means nothing.
    pub(crate) fn white_out(&mut self, folder: &Path, name: &OsStr) -> Result<()> {
        let path = folder.join(name);
        let is_overlay = matches!(self.whiteouts, Whiteouts::Overlay { .. });
        let parent = if is_overlay {
            self.folder(folder)?
        } else {
            match self.find(folder) {
                Ok(parent) => Arc::new(parent),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                Err(error) => return Err(system(error)),
            }
        };
        let place = Place { parent: parent.as_fd(), name };
        let found = match place.stat() {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(system(error)),
        };
        match found {
            Some(FileType::Directory) if self.is_own(&path) => return self.make_opaque(&path),
            Some(_) if self.is_own(&path) => return Ok(()),
            Some(_) => self.remove(place)?,
            None => {}
        }
        if is_overlay {
            mknodat(place.parent, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(system)?;
            self.wrote(path)?;
        }
        Ok(())
    }

    /// Hides what the layers below have in a folder.
    pub(crate) fn make_opaque(&mut self, folder: &Path) -> Result<()> {
        if matches!(self.whiteouts, Whiteouts::Overlay { .. }) {
            let handle = self.folder(folder)?;
            self.wrote(folder.to_owned())?;
            return self.hide(handle.as_fd());
        }
        let mut pending = vec![folder.to_owned()];
        while let Some(folder) = pending.pop() {
            let handle = match self.find(&folder) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(system(error)),
            };
            for name in corten_tree::names(handle.as_fd())? {
                let name = OsStr::from_bytes(name.to_bytes());
                let (path, place) = (folder.join(name), Place { parent: handle.as_fd(), name });
                if !self.is_own(&path) {
                    self.remove(place)?;
                } else if place.stat().is_ok_and(|stat| is_folder(&stat)) {
                    pending.push(path);
                }
            }
        }
        Ok(())
    }

    fn hide(&self, folder: BorrowedFd<'_>) -> Result<()> {
        let attribute = match self.whiteouts {
            Whiteouts::Overlay { user: true, .. } => "user.overlay.opaque",
            Whiteouts::Overlay { user: false, .. } => "trusted.overlay.opaque",
            Whiteouts::Remove => return Ok(()),
        };
        fsetxattr(folder, attribute, b"y", XattrFlags::empty()).map_err(system).context(attribute)
    }
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let stat = fstat(from).map_err(system)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(to, Some(uid), Some(gid)).map_err(system)?;
    for (name, value) in corten_tree::attributes(from.as_fd())? {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        match fsetxattr(to, name.as_slice(), &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(system(error)),
        }
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(system)
}

/// Whether an extended attribute is one that a layer does not write: those of administrators, among them the
/// books of overlayfs. Its books for users are what a layer may have: they lead nowhere (`userxattr` implies
/// `redirect_dir=nofollow`).
pub(crate) fn is_reserved(attribute: &[u8]) -> bool {
    attribute.starts_with(b"trusted.")
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The steps of a link, the last first.
fn steps(target: &[u8]) -> impl Iterator<Item = OsString> {
    let parts = target.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec()))
}
