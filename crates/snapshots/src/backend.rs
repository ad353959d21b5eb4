//! What a built-in snapshotter does: directories, or whatever it has in their place, by number.

use std::collections::BTreeSet;
use std::path::Path;

use corten_metadata::Kind;
use corten_types::{Labels, Mount, Result, ResultExt};

use crate::du;
use crate::service::seen;

/// Disk usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in allocated blocks.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A snapshot as a backend sees it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its number, unique per snapshotter over all namespaces.
    pub id: u64,
    /// The numbers of those below it, the nearest first.
    pub parents: Vec<u64>,
    /// What it is for.
    pub kind: Kind,
    /// Those of its labels that backends may see: `containerd.io/snapshot/…` and `containerd.io/snapshot.ref`.
    pub labels: Labels,
    /// Whether its data is known to be on the disk already.
    pub is_synced: bool,
}

impl Snapshot {
    pub(crate) fn new(id: u64, parents: Vec<u64>, kind: Kind, labels: &Labels) -> Self {
        Self { id, parents, kind, labels: seen(labels), is_synced: false }
    }

    /// Whether somebody writes to it.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.kind == Kind::Active
    }
}

/// One snapshotter's place on disk. Calls block.
///
/// What it makes comes before the record that knows it and goes after it, so that a crash leaves only what
/// no record knows: [`Backend::ids`] finds that, and [`Backend::remove`] removes it.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Its name on the wire.
    fn name(&self) -> &str;

    /// Where its directories are.
    fn root(&self) -> &Path;

    /// What it can do beyond the rule: `rebase`, …
    fn capabilities(&self) -> Vec<String>;

    /// Makes the place of an active snapshot or a view. Nothing is left of it after a failure.
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, snapshot: &Snapshot) -> Result<()>;

    /// The mounts that show an active snapshot or a view.
    ///
    /// # Errors
    /// Those of the file system.
    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>>;

    /// Makes an active snapshot fit to be a parent, with all of its data on the disk, and measures it. Its
    /// parents are those that it will have, which may be told only now (`rebase`). The record follows; if it
    /// does not, the snapshot is still active, is mounted again, and may be committed once more.
    ///
    /// # Errors
    /// Those of the file system.
    fn commit(&self, snapshot: &Snapshot) -> Result<Usage>;

    /// Clears up after a commit whose record is written. A crash may leave this out.
    fn committed(&self, _id: u64) {}

    /// What an active snapshot itself takes on disk now, without its parents.
    ///
    /// # Errors
    /// Those of the file system.
    fn usage(&self, snapshot: &Snapshot) -> Result<Usage>;

    /// Labels that it adds to what clients see of a snapshot.
    fn labels(&self, _id: u64) -> Labels {
        Labels::new()
    }

    /// Whether the place of an active snapshot or a view is there, whole. A loss of power takes one that was
    /// not committed: then it is made anew, as it was when it was acknowledged.
    fn holds(&self, id: u64) -> bool;

    /// Numbers of what is on disk.
    ///
    /// # Errors
    /// Those of the file system.
    fn ids(&self) -> Result<BTreeSet<u64>>;

    /// Removes what has a number, and what an interrupted creation left of it.
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

/// Brings what lies in the folder of a snapshot to the disk, and measures it.
pub(crate) fn settle(snapshot: &Snapshot, folder: &Path) -> Result<Usage> {
    // This waits for everything that anybody has written to the file system.
    if !snapshot.is_synced {
        corten_durable::sync_file_system(folder).context("failed to sync the snapshot")?;
    }
    du::usage(folder)
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
