//! User namespaces that only carry a mapping.

use std::io;
use std::os::fd::OwnedFd;

use crate::checked;
use crate::process::CloneArguments;

/// A user namespace with a mapping of users and one of groups, in the format of `/proc/<pid>/uid_map`.
/// Nobody lives in it. Fit for programs with threads, and no child of it is seen by those who collect
/// children.
///
/// # Errors
/// Those of clone3(2), and of writing the mappings.
pub fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let idle = Idle::start(libc::CLONE_NEWUSER as u64)?;
    std::fs::write(format!("/proc/{}/uid_map", idle.0), users)?;
    std::fs::write(format!("/proc/{}/gid_map", idle.0), groups)?;
    Ok(std::fs::File::open(format!("/proc/{}/ns/user", idle.0))?.into())
}

/// A process that waits for its end, which comes when this is dropped.
struct Idle(libc::pid_t);

impl Idle {
    fn start(namespaces: u64) -> io::Result<Self> {
        // An exit signal of 0 hides it from those who wait for any child.
        let arguments = CloneArguments::new(namespaces, 0);
        // SAFETY: without CLONE_VM this is a fork. The child makes two kinds of calls, neither of which
        // allocates or takes a lock that another thread may have held.
        let pid = checked(unsafe {
            libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>())
        })?;
        if pid == 0 {
            // SAFETY: both calls have no preconditions and touch no memory of ours.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
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
