//! A private folder that takes everything mounted below it away when it goes.

use std::path::{Path, PathBuf};

/// A folder under the system's temporary one, with a path short enough for sockets.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        let path = tempfile::Builder::new().prefix("corten-").rand_bytes(8).tempdir().unwrap().keep();
        Self { path, keep: std::env::var_os("CORTEN_KEEP").is_some() }
    }

    /// One whose files are in memory alone.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn in_memory() -> Self {
        let path = tempfile::Builder::new().prefix("corten-").tempdir_in("/dev/shm").unwrap().keep();
        Self { path, keep: false }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Mount points below the folder, deepest first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<PathBuf> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|path| PathBuf::from(path.replace("\\040", " ")))
            .filter(|path| path.starts_with(&self.path))
            .collect();
        mounts.sort();
        mounts.reverse();
        mounts
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts() {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).ok();
        }
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else {
            std::fs::remove_dir_all(&self.path).ok();
        }
    }
}
