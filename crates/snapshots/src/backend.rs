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

    /// Removes what interrupted removals left.
    ///
    /// # Errors
    /// Those of the file system.
    fn clean(&self) -> Result<()>;
}

/// Numbers of the directories in a folder, those that are being made or were left half made among them.
pub(crate) fn numbers(folder: &Path) -> Result<BTreeSet<u64>> {
    let names = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.trim_start_matches("new-").parse().ok()).collect())
}

/// Removes what interrupted removals left.
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
    let gone = folder.join(format!("rm-{id}"));
    for name in [id.to_string(), format!("new-{id}")] {
        match std::fs::rename(folder.join(name), &gone) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        }
        std::fs::remove_dir_all(&gone)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_half_made_is_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["3/fs", "new-7/fs", "rm-5/fs", "other"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        assert_eq!(numbers(folder).unwrap(), BTreeSet::from([3, 7]));
        for id in [3, 4, 7] {
            remove(folder, id).unwrap();
        }
        clean(folder).unwrap();
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "only what is not ours");
    }
}
