//! Sockets that the daemon listens on.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use corten_types::{Error, Result, ResultExt};
use tokio::net::UnixListener;

/// The longest name of a socket that the kernel takes, less a margin.
const LONGEST: usize = 104;

/// A socket for an owner and a group; one that a dead daemon left is replaced.
///
/// # Errors
/// InvalidArgument for a path that is too long; those of the file system.
pub fn listen(path: &Path, uid: u32, gid: u32) -> Result<UnixListener> {
    if path.as_os_str().len() > LONGEST {
        let text = format!("{}: unix socket path too long (> {LONGEST})", path.display());
        return Err(Error::invalid_argument(text));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        std::fs::set_permissions(folder, Permissions::from_mode(0o770))?;
        chown(folder, Some(uid), Some(gid)).ok();
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::from(error).context(path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    chown(path, Some(uid), Some(gid)).ok();
    Ok(listener)
}
