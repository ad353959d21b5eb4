//! System calls that need `unsafe`, behind safe functions. It is forbidden everywhere else.

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Runs `work` in a child process and answers its pid. The child never returns: it ends with what `work`
/// says. Only for processes of one thread, whose locks nobody else can hold.
///
/// # Errors
/// Those of fork(2).
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the process has one thread (see above), so the child may use everything it inherits.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: ends the process without running what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// Closes all descriptors from 3 on but those that are named. For forked children, which own nothing.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if from < fd {
            // SAFETY: closing is all that happens; the child that calls this uses none of them.
            unsafe {
                libc::syscall(libc::SYS_close_range, from as libc::c_uint, (fd - 1) as libc::c_uint, 0)
            };
        }
        from = fd.saturating_add(1);
    }
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// When there is none under this number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether it is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was given to this process to own; nobody else here knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a descriptor under another number, where programs that are started from here inherit it.
///
/// # Errors
/// Those of dup2(2).
pub fn bequeath(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: changes a flag of a descriptor that is held.
        let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        return if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: both are plain numbers; what was under the second is closed by intent.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A detached, read-only mount of one file: a program started from it cannot be written to through
/// `/proc/<pid>/exe`, wherever the link is opened (the class of CVE-2019-5736). Inherited by programs.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub fn read_only_clone(path: &OsStr) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let path = std::ffi::CString::new(path.as_bytes())?;
    // SAFETY: the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), OPEN_TREE_CLONE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let attributes: [u64; 4] = [MOUNT_ATTR_RDONLY, 0, 0, 0];
    // SAFETY: the structure outlives the call and its size is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

/// Starts to write a file's changed pages to disk and does not wait for it: a later sync finds less to do.
/// It is only a hint; file systems that cannot do it are left alone.
pub fn start_writeback(file: BorrowedFd<'_>) {
    // SAFETY: the descriptor is open for the time of the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Gives unused heap back to the system and keeps the number of arenas small.
pub fn trim_heap() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Tells the allocator to keep to one or two arenas and to give back early.
pub fn economize_heap(arenas: i32) {
    // SAFETY: sets tunables; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Sends a signal by number, real-time ones included.
///
/// # Errors
/// Those of kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: has no preconditions.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
