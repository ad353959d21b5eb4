//! Snapshots as subvolumes of btrfs: `active/<number>`, `view/<number>`, and `snapshots/<number>` for what is
//! committed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corten_types::{Error, Mount, Result, ResultExt};

use crate::backend::{self, Backend, Snapshot, Usage};
use crate::du;

const MAGIC: u64 = 0x9123_683e;
/// Inode number of the top directory of each subvolume.
const TOP: u64 = 256;
const ACTIVE: &str = "active";
const VIEW: &str = "view";
const COMMITTED: &str = "snapshots";

/// The btrfs snapshotter.
#[derive(Debug)]
pub struct Btrfs {
    root: PathBuf,
    device: String,
}

impl Btrfs {
    /// Opens it in a folder, which is made if need be.
    ///
    /// # Errors
    /// FailedPrecondition with `skip plugin` where there is no btrfs; those of the file system.
    pub fn open(root: &Path) -> Result<Self> {
        // Looked at before the folder is made, so that nothing is left where this cannot be.
        let mut existing = root;
        while let Some(above) = existing.parent().filter(|_| !existing.exists()) {
            existing = above;
        }
        let kind = rustix::fs::statfs(existing).map_err(io::Error::from)?.f_type;
        if u64::try_from(kind) != Ok(MAGIC) {
            let (kind, device) = mounted_from(existing)?;
            drop(device);
            return Err(Error::bare(
                corten_types::ErrorClass::FailedPrecondition,
                format!(
                    "path {} ({kind}) must be a btrfs filesystem to be used with the btrfs snapshotter: skip plugin",
                    root.display()
                ),
            ));
        }
        for folder in [ACTIVE, VIEW, COMMITTED] {
            let folder = root.join(folder);
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder);
            made.with_context(|| folder.display().to_string())?;
        }
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
        let root = root.canonicalize()?;
        let (_, device) = mounted_from(&root)?;
        Ok(Self { root, device })
    }

    fn path(&self, folder: &str, id: u64) -> PathBuf {
        self.root.join(folder).join(id.to_string())
    }

    fn folder(&self, name: &str) -> io::Result<File> {
        File::open(self.root.join(name))
    }

    /// Removes a subvolume if it is there.
    fn destroy(&self, folder: &str, id: u64) -> Result<()> {
        destroy(&self.folder(folder)?, &self.path(folder, id)).context("failed to remove the subvolume")
    }
}

impl Backend for Btrfs {
    fn name(&self) -> &str {
        "btrfs"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        let folder = self.folder(if snapshot.is_active() { ACTIVE } else { VIEW })?;
        let name = name_of(snapshot.id);
        let Some(parent) = snapshot.parents.first() else {
            return corten_sys::create_subvolume(folder.as_fd(), &name)
                .context("failed to create the subvolume");
        };
        // A crash may have left what the parent was before it was committed.
        self.destroy(ACTIVE, *parent)?;
        let source =
            File::open(self.path(COMMITTED, *parent)).context("opening snapshot source subvolume failed")?;
        corten_sys::snapshot_subvolume(source.as_fd(), folder.as_fd(), &name, !snapshot.is_active())
            .context("failed to snapshot the subvolume")
    }

    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let folder = if snapshot.is_active() { ACTIVE } else { VIEW };
        let subvolume = File::open(self.path(folder, snapshot.id))?;
        let id = corten_sys::subvolume_id(subvolume.as_fd()).context("failed to get the subvolume's id")?;
        let mut options = vec![format!("subvolid={id}")];
        if !snapshot.is_active() {
            options.push("ro".to_owned());
        }
        Ok(vec![Mount {
            kind: "btrfs".to_owned(),
            source: self.device.clone(),
            target: String::new(),
            options,
        }])
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        let usage = self.usage(snapshot)?;
        // What an earlier try left whose record was not written.
        self.destroy(COMMITTED, snapshot.id)?;
        let source = File::open(self.path(ACTIVE, snapshot.id))?;
        let folder = self.folder(COMMITTED)?;
        // This writes everything to the disk.
        corten_sys::snapshot_subvolume(source.as_fd(), folder.as_fd(), &name_of(snapshot.id), true)
            .context("failed to snapshot the subvolume")?;
        Ok(usage)
    }

    fn committed(&self, id: u64) {
        if let Err(error) = self.destroy(ACTIVE, id) {
            tracing::warn!(id, %error, "the subvolume of a committed snapshot stays until it is used or removed");
        }
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        let own = self.path(ACTIVE, snapshot.id);
        match snapshot.parents.first() {
            None => du::usage(&own),
            Some(parent) => difference(&self.path(COMMITTED, *parent), &own),
        }
    }

    fn ids(&self) -> Result<BTreeSet<u64>> {
        let mut ids = BTreeSet::new();
        for folder in [ACTIVE, VIEW, COMMITTED] {
            ids.extend(backend::numbers(&self.root.join(folder))?);
        }
        Ok(ids)
    }

    fn holds(&self, id: u64) -> bool {
        [ACTIVE, VIEW].iter().any(|folder| self.path(folder, id).exists())
    }

    fn remove(&self, id: u64) -> Result<()> {
        [ACTIVE, VIEW, COMMITTED].into_iter().try_for_each(|folder| self.destroy(folder, id))
    }

    fn clean(&self) -> Result<()> {
        Ok(())
    }
}

fn name_of(id: u64) -> CString {
    CString::new(id.to_string()).unwrap_or_default()
}

/// Removes a subvolume, and those that somebody made in it.
fn destroy(folder: &File, path: &Path) -> io::Result<()> {
    let name = CString::new(path.file_name().unwrap_or_default().as_bytes())?;
    match corten_sys::destroy_subvolume(folder.as_fd(), &name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        other => return other,
    }
    let mut inner = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                if metadata.ino() == TOP {
                    inner.push(entry.path());
                }
                pending.push(entry.path());
            }
        }
    }
    // The deepest first.
    for path in inner.iter().rev() {
        let Some(above) = path.parent() else { continue };
        let name = CString::new(path.file_name().unwrap_or_default().as_bytes())?;
        corten_sys::destroy_subvolume(File::open(above)?.as_fd(), &name)?;
    }
    corten_sys::destroy_subvolume(folder.as_fd(), &name)
}

/// What a tree takes on disk beyond the one that it was made from.
fn difference(below: &Path, own: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut links = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(folder) = pending.pop() {
        // Live trees change under us.
        let Ok(entries) = std::fs::read_dir(own.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let path = folder.join(entry.file_name());
            let before = std::fs::symlink_metadata(below.join(&path));
            let known =
                metadata.nlink() > 1 && !metadata.is_dir() && links.insert(metadata.ino(), ()).is_some();
            if !known && before.is_ok_and(|before| is_same(&before, &metadata)) {
                // As it was.
            } else if !known {
                usage.size += metadata.blocks() * 512;
                usage.inodes += 1;
            }
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(usage)
}

/// A snapshot keeps the numbers and times of inodes. Folders change with what is in them; that is counted.
fn is_same(before: &Metadata, now: &Metadata) -> bool {
    let key = |it: &Metadata| (it.ino(), it.mode(), it.uid(), it.gid());
    let change = |it: &Metadata| (it.ctime(), it.ctime_nsec(), it.size());
    key(before) == key(now) && (now.is_dir() || change(before) == change(now))
}

/// Kind and source of the mount that a path lies on.
fn mounted_from(path: &Path) -> Result<(String, String)> {
    let path = path.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Option<(usize, String, String)> = None;
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4).map(unescape) else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(source)) = (right.next(), right.next()) else { continue };
        // Of those in one place the last one counts.
        if path.starts_with(&point) && found.as_ref().is_none_or(|(length, ..)| *length <= point.len()) {
            found = Some((point.len(), kind.to_owned(), unescape(source)));
        }
    }
    let missing = || Error::not_found(format!("no mount of {}", path.display()));
    found.map(|(_, kind, source)| (kind, source)).ok_or_else(missing)
}

/// Blanks and the like are octal in mountinfo.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}
