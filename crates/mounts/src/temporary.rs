//! Mounts for the time of an operation.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use corten_types::{Mount, Result, ResultExt};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::mount::mount_all;
use crate::unmount::unmount_all;

const PREFIX: &str = "mount-";

/// A list of mounts on a private folder, gone when this is dropped.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
}

impl TempMount {
    /// Mounts on a new folder below `folder`.
    ///
    /// # Errors
    /// As [`mount_all`].
    pub fn new(folder: &Path, mounts: &[Mount]) -> Result<Self> {
        let this = Self { path: new_folder(folder)? };
        mount_all(&without_volatile(mounts), &this.path)?;
        // What happens in here is nobody else's business.
        mount_change(&this.path, MountPropagationFlags::PRIVATE).ok();
        Ok(this)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the mounts away.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn close(self) -> Result<()> {
        unmount_all(&self.path)
        // The folder goes with the drop.
    }

    /// Takes away what an earlier process left below `folder`. Only to be called before there are others.
    ///
    /// # Errors
    /// Those of the kernel; what can be taken away is.
    pub fn clear(folder: &Path) -> Result<()> {
        unmount_all(folder)?;
        for entry in std::fs::read_dir(folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                // Never with contents: they could be somebody's data, still mounted.
                std::fs::remove_dir(entry.path()).with_context(|| entry.path().display().to_string())?;
            }
        }
        Ok(())
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        match unmount_all(&self.path) {
            Ok(()) => {
                std::fs::remove_dir(&self.path).ok();
            }
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "a temporary mount stays"),
        }
    }
}

/// An overlay that was mounted `volatile` cannot be mounted again; a temporary mount must not be the first.
fn without_volatile(mounts: &[Mount]) -> Vec<Mount> {
    let mut mounts = mounts.to_vec();
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "overlay") {
        mount.options.retain(|option| option != "volatile");
    }
    mounts
}

fn new_folder(folder: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // An earlier process had the same number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
}
