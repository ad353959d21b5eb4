//! User namespaces that only carry a mapping, and network namespaces that belong to one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::checked;
use crate::process::CloneArguments;

/// A user namespace with a mapping of users and one of groups, in the format of `/proc/<pid>/uid_map`.
/// Nobody lives in it. Fit for programs with threads, and no child of it is seen by those who collect
/// children.
///
/// # Errors
/// Those of clone3(2), and of writing the mappings.
pub fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let idle = Idle::start(libc::CLONE_NEWUSER as u64, || 0)?;
    std::fs::write(format!("/proc/{}/uid_map", idle.0), users)?;
    std::fs::write(format!("/proc/{}/gid_map", idle.0), groups)?;
    Ok(std::fs::File::open(format!("/proc/{}/ns/user", idle.0))?.into())
}

/// A network namespace that belongs to a user namespace. Fit for programs with threads.
///
/// # Errors
/// Those of setns(2) and unshare(2).
pub fn network_namespace_of(user: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (user, told) = (user.as_raw_fd(), write.as_raw_fd());
    let idle = Idle::start(0, || {
        // SAFETY: these calls touch no memory but that of the number that is told.
        unsafe {
            let mut number = 0;
            if libc::setns(user, libc::CLONE_NEWUSER) != 0 || libc::unshare(libc::CLONE_NEWNET) != 0 {
                number = *libc::__errno_location();
            }
            libc::write(told, (&raw const number).cast(), size_of_val(&number));
            number
        }
    })?;
    drop(write);
    let mut number = [0; 4];
    let told = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut number))?;
    match i32::from_ne_bytes(number) {
        0 if told == number.len() => Ok(std::fs::File::open(format!("/proc/{}/ns/net", idle.0))?.into()),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The user namespace that a namespace belongs to.
///
/// # Errors
/// Those of ioctl_ns(2).
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: without an argument; the answer is a descriptor that nobody else knows.
    unsafe {
        let fd = checked(libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _).into())?;
        Ok(OwnedFd::from_raw_fd(fd as _))
    }
}

/// A process that waits for its end, which comes when this is dropped.
struct Idle(libc::pid_t);

impl Idle {
    /// `prepare` runs in the new process: it may only make system calls. The process ends unless it answers 0.
    fn start(namespaces: u64, prepare: impl Fn() -> i32) -> io::Result<Self> {
        // An exit signal of 0 hides it from those who wait for any child.
        let arguments = CloneArguments::new(namespaces, 0);
        // SAFETY: without CLONE_VM this is a fork. The child only makes system calls (see above), none of which
        // allocates or takes a lock that another thread may have held.
        let pid = checked(unsafe {
            libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>())
        })?;
        if pid == 0 {
            // SAFETY: the calls have no preconditions and touch no memory of ours.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if prepare() != 0 {
                    libc::_exit(1);
                }
                loop {
                    libc::pause();
                }
            }
        }
        Ok(Self(pid as libc::pid_t))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // SAFETY: the process is ours until it is waited for; no status is asked for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_with_mappings_are_made_beside_threads() {
        let made: Vec<_> = (0..8)
            .map(|index| {
                std::thread::spawn(move || {
                    user_namespace(&format!("0 {} 10\n", 1000 * (index + 1)), "0 5 10\n").unwrap()
                })
            })
            .collect();
        made.into_iter().for_each(|thread| drop(thread.join().unwrap()));
        assert!(user_namespace("nonsense", "0 5 10\n").is_err());
    }
}
