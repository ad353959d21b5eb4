//! Taking mounts away.

use std::path::Path;

use corten_types::{Result, ResultExt};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::system;
use crate::table::mount_points_below;

/// Takes away everything mounted on or below a folder, the last first. Nothing mounted is no error.
///
/// # Errors
/// Those of the kernel for what cannot even be detached.
pub fn unmount_all(target: &Path) -> Result<()> {
    for point in mount_points_below(target)? {
        unmount_one(&point)?;
    }
    Ok(())
}

/// Takes away what is mounted on exactly this folder, without looking further. What is in use is detached:
/// it goes when its last user does.
///
/// # Errors
/// Those of the kernel for what cannot even be detached; that nothing is mounted is none.
pub fn unmount_one(target: &Path) -> Result<()> {
    let mut result = unmount(target, UnmountFlags::NOFOLLOW);
    if result == Err(Errno::BUSY) {
        result = unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
    }
    match result {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(system(error)).with_context(|| format!("unmount {}", target.display())),
    }
}
