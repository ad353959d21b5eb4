//! What a built-in snapshotter does: directories by number.

use std::collections::BTreeSet;
use std::path::Path;

use corten_types::{Labels, Mount, Result};

/// Disk usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in allocated blocks.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The directories of one snapshotter. Calls block.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Its name on the wire.
    fn name(&self) -> &str;

    /// Where its directories are.
    fn root(&self) -> &Path;

    /// What it can do beyond the rule: `rebase`, …
    fn capabilities(&self) -> Vec<String>;

    /// Makes the directory of a snapshot over its parents, the nearest first.
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, id: u64, parents: &[u64], writable: bool) -> Result<()>;

    /// The mounts that show a snapshot.
    fn mounts(&self, id: u64, parents: &[u64], writable: bool, labels: &Labels) -> Vec<Mount>;

    /// Where writes of an active snapshot go, for usage and syncing.
    fn changes(&self, id: u64) -> std::path::PathBuf;

    /// Numbers of the directories on disk.
    ///
    /// # Errors
    /// Those of the file system.
    fn ids(&self) -> Result<BTreeSet<u64>>;

    /// Removes a directory, and what an interrupted creation left.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, id: u64) -> Result<()>;

    /// Removes what interrupted creations and removals left.
    ///
    /// # Errors
    /// Those of the file system.
    fn clean(&self) -> Result<()>;
}

/// Numbers among the names in a folder.
pub(crate) fn numbers(folder: &Path) -> Result<BTreeSet<u64>> {
    let names = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Removes what has no final name, unless it is being made now.
pub(crate) fn clean(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("rm-") {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Takes the name away at once, the contents after.
pub(crate) fn remove(folder: &Path, id: u64) -> Result<()> {
    let (path, gone) = (folder.join(id.to_string()), folder.join(format!("rm-{id}")));
    match std::fs::rename(&path, &gone) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    Ok(std::fs::remove_dir_all(gone)?)
}
