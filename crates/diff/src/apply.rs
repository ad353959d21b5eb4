//! A layer onto mounts.

use std::ffi::OsStr;
use std::io::{BufRead, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_mounts::TempMount;
use corten_types::{Error, Mount, Result, ResultExt, media_type};
use rustix::fs::Timestamps;

use crate::archive::{Entry, Kind, Reader};
use crate::differ::Applied;
use crate::names::Name;
use crate::place::Place;
use crate::stream::{decompress, failure};
use crate::tree::{Budget, Tree, Whiteouts, system};
use crate::write;

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

/// Extracts a layer, compressed by gzip, Zstandard or not at all, onto mounts that are not mounted yet. A
/// single overlay or bind mount is written without being mounted.
///
/// # Errors
/// InvalidArgument for a damaged or hostile archive; ResourceExhausted for one that is too large; those of
/// the file system. What was written until then stays: the caller removes the snapshot.
pub fn apply(input: &mut dyn Read, mounts: &[Mount], options: &ApplyOptions) -> Result<Applied> {
    let (mounted, mut tree) = open(mounts, &options.mount_folder)?;
    let (tree, totals) = decompress(input, options.limit, move |stream| {
        extract(stream, &mut tree)?;
        Ok(tree)
    })?;
    if options.sync {
        rustix::fs::syncfs(tree.handle()).map_err(system).context("sync of the layer")?;
    }
    let implied = tree.implied();
    drop(tree);
    mounted.map_or(Ok(()), TempMount::close)?;
    let media_type = media_type::OCI_LAYER.to_owned();
    Ok(Applied { media_type, digest: totals.digest, size: totals.size, implied })
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

/// The tree behind the mounts, with what keeps it mounted.
fn open(mounts: &[Mount], folder: &Path) -> Result<(Option<TempMount>, Tree)> {
    if mounts.is_empty() {
        return Err(Error::invalid_argument("no mounts to apply a layer to"));
    }
    if let [mount] = mounts
        && mount.target.is_empty()
        && let Some(tree) = unmounted(mount)?
    {
        return Ok((None, tree));
    }
    let mounted = TempMount::new(folder, mounts)?;
    let tree = Tree::open(mounted.path(), Whiteouts::Remove)?;
    Ok((Some(mounted), tree))
}

/// The folder that writes to a mount would end up in, if it is as good as the mount.
fn unmounted(mount: &Mount) -> Result<Option<Tree>> {
    let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    let has = |word: &str| mount.options.iter().any(|option| option == word);
    if has("ro") || (mount.kind == "overlay" && option("upperdir=").is_none()) {
        let text = format!("a layer cannot be applied to the read-only mount of {}", mount.source);
        return Err(Error::failed_precondition(text));
    }
    match mount.kind.as_str() {
        "overlay" => {
            let lower = corten_mounts::overlay_layers(option("lowerdir=").unwrap_or_default());
            let lower = lower.into_iter().filter(|layer| !layer.is_empty()).map(PathBuf::from).collect();
            let whiteouts = Whiteouts::Overlay { user: has("userxattr"), lower };
            Tree::open(Path::new(option("upperdir=").unwrap_or_default()), whiteouts).map(Some)
        }
        "bind" => Tree::open(Path::new(&mount.source), Whiteouts::Remove).map(Some),
        _ => Ok(None),
    }
}

/// Times of folders, which are set when nothing is put into them any more.
#[derive(Default)]
struct Folders {
    times: Vec<(PathBuf, Timestamps)>,
    budget: Budget,
}

fn extract(stream: &mut dyn BufRead, tree: &mut Tree) -> Result<()> {
    let mut reader = Reader::new(stream);
    let mut folders = Folders::default();
    while let Some(entry) = reader.next_entry().map_err(failure)? {
        one(tree, &mut reader, &entry, &mut folders)
            .with_context(|| OsStr::from_bytes(&entry.path).display().to_string())?;
    }
    for (folder, times) in &folders.times {
        tree.restore_times(folder, times)?;
    }
    Ok(())
}

fn one<R: BufRead>(
    tree: &mut Tree,
    reader: &mut Reader<R>,
    entry: &Entry,
    folders: &mut Folders,
) -> Result<()> {
    let (folder, name) = match Name::parse(&entry.path)? {
        Name::Root => return Ok(()),
        Name::Opaque { folder } => return tree.make_opaque(&folder),
        Name::Whiteout { folder, name } => return tree.white_out(&folder, &name),
        Name::Entry { folder, name } => (folder, name),
    };
    let parent = tree.folder(&folder)?;
    write::entry(tree, Place { parent: parent.as_fd(), name: &name }, entry, reader)?;
    let path = folder.join(name);
    if entry.kind == Kind::Folder {
        folders.budget.spend(&path)?;
        folders.times.push((path.clone(), write::times(entry)));
    }
    tree.wrote(path)
}
