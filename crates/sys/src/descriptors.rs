//! File descriptors by number: where they are inherited, and where they must not be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::checked;

/// Closes all descriptors from 3 on but those that are named. For forked children, which own nothing.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if from < fd {
            close_range(from, fd - 1, 0);
        }
        from = fd.saturating_add(1);
    }
}

/// Closes one that a forked child has inherited and nobody there owns: its other end waits for its end.
pub fn close_inherited(fd: RawFd) {
    close_range(fd, fd, 0);
}

/// Lets all descriptors from this number on end with the program that runs now.
pub fn close_on_exec(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    close_range(first, RawFd::MAX, CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) {
    // SAFETY: closing is all that happens; those who call this use none of them any more.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last as libc::c_uint, flags) };
    if done == 0 {
        return;
    }
    // Kernels before 5.9 (or 5.11 for the flag): one by one.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    for fd in open.filter(|fd| (first..=last).contains(fd)).collect::<Vec<_>>() {
        // SAFETY: as above.
        unsafe {
            if flags == 0 { libc::close(fd) } else { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }
        };
    }
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// When there is none under this number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether it is open.
    checked(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
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
        checked(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into())?;
    } else {
        // SAFETY: both are plain numbers; what was under the second is closed by intent.
        checked(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())?;
    }
    Ok(())
}

/// Has a program started with a descriptor under this number.
pub fn hand_over(command: &mut std::process::Command, fd: OwnedFd, number: RawFd) {
    use std::os::unix::process::CommandExt;
    let bequeathed = move || bequeath(&fd, number);
    // SAFETY: in the new process only dup2 or fcntl is called, and no memory is allocated.
    unsafe { command.pre_exec(bequeathed) };
}

/// Starts to write a file's changed pages to disk and does not wait for it: a later sync finds less to do.
/// It is only a hint; file systems that cannot do it are left alone.
pub fn start_writeback(file: BorrowedFd<'_>) {
    // SAFETY: the descriptor is open for the time of the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork;

    #[test]
    fn a_child_keeps_only_what_is_named() {
        let (kept, gone) =
            (std::fs::File::open("/dev/null").unwrap(), std::fs::File::open("/dev/null").unwrap());
        let (kept, gone) = (kept.as_raw_fd(), gone.as_raw_fd());
        let child = fork(|| {
            close_all_except(&[kept]);
            // SAFETY: only asks.
            let open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
            i32::from(!(open(0) && open(kept) && !open(gone)))
        });
        assert_eq!(crate::process::tests::end_of(child.unwrap()), 0);
    }
}
