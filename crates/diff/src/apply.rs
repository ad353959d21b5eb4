//! A layer onto mounts.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_mounts::TempMount;
use corten_types::{Digest, Error, Mount, Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, Timestamps, openat};

use crate::input::{Hashing, decompress};
use crate::leaf::{self, Place};
use crate::names::Name;
use crate::tree::{Tree, Whiteouts, system};

/// How a layer is applied.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Everything is on the disk when the call returns.
    pub sync: bool,
    /// Bytes that the uncompressed layer may have.
    pub limit: u64,
    /// Where trees are mounted that cannot be written directly.
    pub mount_folder: PathBuf,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self { sync: false, limit: u64::MAX, mount_folder: std::env::temp_dir() }
    }
}

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the uncompressed layer.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Folders that the layer has entries in but does not list, made with default attributes because no
    /// layer below was there to copy them from; see [`inherit`].
    pub implied: Vec<PathBuf>,
}

/// Extracts a layer, compressed by gzip, Zstandard or not at all, onto mounts that are not mounted yet. A
/// single overlay or bind mount is written without being mounted.
///
/// # Errors
/// InvalidArgument for a damaged or hostile archive; those of the file system. What was written until then
/// stays: the caller removes the snapshot.
pub fn apply(input: &mut dyn Read, mounts: &[Mount], options: &ApplyOptions) -> Result<Applied> {
    let (_mounted, mut tree) = open(mounts, &options.mount_folder)?;
    let mut archive = tar::Archive::new(Hashing::new(decompress(input)?, options.limit));
    extract(&mut archive, &mut tree)?;
    let (digest, size) = archive.into_inner().finish()?;
    if options.sync {
        rustix::fs::syncfs(tree.root()).map_err(system)?;
    }
    Ok(Applied { digest, size, implied: tree.implied() })
}

/// Gives folders of an overlay's upper layer the attributes that they have in the nearest layer below: for
/// [`Applied::implied`], once a layer that was extracted on its own gets layers below it.
///
/// # Errors
/// Those of the file system.
pub fn inherit(overlay: &Mount, folders: &[PathBuf]) -> Result<()> {
    let (_, tree) = open(std::slice::from_ref(overlay), Path::new(""))?;
    folders.iter().try_for_each(|folder| tree.inherit(folder))
}

fn option<'a>(mount: &'a Mount, key: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

/// The tree behind the mounts, with what keeps it mounted.
fn open(mounts: &[Mount], folder: &Path) -> Result<(Option<TempMount>, Tree)> {
    if let [mount] = mounts {
        let writable = !mount.options.iter().any(|option| option == "ro");
        match (mount.kind.as_str(), option(mount, "upperdir")) {
            ("overlay", Some(upper)) => {
                let lower = option(mount, "lowerdir").unwrap_or_default();
                let lower = lower.split(':').filter(|path| !path.is_empty());
                let open = |path| {
                    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                };
                let lower: Vec<OwnedFd> = lower.map(open).collect::<Result<_, _>>().map_err(system)?;
                let user = mount.options.iter().any(|option| option == "userxattr");
                let attribute = if user { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
                return Ok((None, Tree::new(Path::new(upper), Whiteouts::Overlay { attribute, lower })?));
            }
            ("bind", _) if writable => {
                return Ok((None, Tree::new(Path::new(&mount.source), Whiteouts::Remove)?));
            }
            _ => {}
        }
    }
    if mounts.is_empty() {
        return Err(Error::invalid_argument("no mounts to apply a layer to"));
    }
    let mounted = TempMount::new(folder, mounts)?;
    let tree = Tree::new(mounted.path(), Whiteouts::Remove)?;
    Ok((Some(mounted), tree))
}

fn extract<R: Read>(archive: &mut tar::Archive<R>, tree: &mut Tree) -> Result<()> {
    let mut folders: Vec<(PathBuf, Timestamps)> = Vec::new();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let bytes = entry.path_bytes().into_owned();
        one(tree, &mut entry, &bytes, &mut folders).with_context(|| leaf::shown(&bytes))?;
    }
    // Deepest last, so that no folder's time is changed by what is below it.
    for (folder, times) in folders {
        leaf::restore_times(tree, &folder, &times)?;
    }
    Ok(())
}

fn one<R: Read>(
    tree: &mut Tree,
    entry: &mut tar::Entry<'_, R>,
    bytes: &[u8],
    folders: &mut Vec<(PathBuf, Timestamps)>,
) -> Result<()> {
    let (folder, name) = match Name::parse(bytes)? {
        Name::Root | Name::Ignored => return Ok(()),
        Name::Opaque { folder } => return tree.make_opaque(&folder),
        Name::Whiteout { folder, name } => return tree.white_out(&folder, &name),
        Name::Entry { folder, name } => (folder, name),
    };
    let attributes = leaf::attributes(entry)?;
    let parent = tree.folder(&folder)?;
    leaf::write(tree, Place { parent: parent.as_fd(), name: &name }, entry, &attributes)?;
    let path = folder.join(name);
    if entry.header().entry_type().is_dir() {
        tree.listed(&path);
        folders.push((path.clone(), attributes.times()));
    }
    tree.wrote(path);
    Ok(())
}

/// What the parser of archives says, in our words.
fn damaged(error: std::io::Error) -> Error {
    let text = error.to_string();
    if error.kind() == std::io::ErrorKind::UnexpectedEof || text.contains("failed to read entire block") {
        return Error::invalid_argument("unexpected EOF: the archive is truncated");
    }
    Error::invalid_argument(format!("damaged archive: {text}"))
}
