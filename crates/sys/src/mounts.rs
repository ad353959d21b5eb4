//! Mounts as descriptors, where rustix has no wrapper.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crate::checked;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_int = 0x8000;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// What [`change_mount`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange<'a> {
    /// `MOUNT_ATTR_` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_` bits to clear.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// A user namespace whose mapping the files' owners go through.
    pub id_map: Option<BorrowedFd<'a>>,
    /// Mounts below it too.
    pub recursive: bool,
}

/// Changes a mount that is held by a descriptor.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn change_mount(mount: BorrowedFd<'_>, change: &MountChange<'_>) -> io::Result<()> {
    let id_map = change.id_map.map_or(0, |_| MOUNT_ATTR_IDMAP);
    let namespace = change.id_map.map_or(0, |fd| fd.as_raw_fd() as u64);
    let attributes: [u64; 4] = [change.set | id_map, change.clear, change.propagation, namespace];
    let flags = libc::AT_EMPTY_PATH | if change.recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the structure outlives the call and its size is told.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })?;
    Ok(())
}

/// A detached copy of what a path, or with none the descriptor itself, is mounted from. Closed on exec.
///
/// # Errors
/// Those of open_tree(2).
pub fn detached_clone(at: BorrowedFd<'_>, path: &OsStr, recursive: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_bytes())?;
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | if recursive { AT_RECURSIVE as libc::c_uint } else { 0 };
    // SAFETY: the path outlives the call.
    let fd = checked(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), path.as_ptr(), flags) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A detached, read-only mount of one file: a program started from it cannot be written to through
/// `/proc/<pid>/exe`, wherever the link is opened (the class of CVE-2019-5736).
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub fn read_only_clone(path: &OsStr) -> io::Result<OwnedFd> {
    let tree = detached_clone(rustix::fs::CWD, path, false)?;
    change_mount(
        std::os::fd::AsFd::as_fd(&tree),
        &MountChange { set: MOUNT_ATTR_RDONLY, ..MountChange::default() },
    )?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_clone_cannot_be_written_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let clone = read_only_clone(file.path().as_os_str()).unwrap();
        let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
        let error = std::fs::File::options().write(true).open(path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}
