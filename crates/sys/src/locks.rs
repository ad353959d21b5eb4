//! Locks on folders.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

/// How often a lock that others have is tried.
const GLANCE: Duration = Duration::from_millis(1);

/// A lock on a folder. Processes that are forked hold it together with those that forked them: it is free when the last
/// of them has closed it or has ended, however it ended.
#[derive(Debug)]
pub struct FolderLock(OwnedFd);

impl FolderLock {
    /// Together with others of this kind.
    ///
    /// # Errors
    /// `WouldBlock` when somebody has it alone for longer than `patience`; those of open(2).
    pub fn shared(folder: &Path, patience: Duration) -> io::Result<Self> {
        Self::take(folder, FlockOperation::NonBlockingLockShared, patience)
    }

    /// Alone.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else has it for longer than `patience`; those of open(2).
    pub fn alone(folder: &Path, patience: Duration) -> io::Result<Self> {
        Self::take(folder, FlockOperation::NonBlockingLockExclusive, patience)
    }

    fn take(folder: &Path, how: FlockOperation, patience: Duration) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, folder, flags, Mode::empty())?;
        let late = Instant::now() + patience;
        loop {
            match flock(&folder, how).map_err(io::Error::from) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < late => {
                    std::thread::sleep(GLANCE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for FolderLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for FolderLock {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::end_of;

    #[test]
    fn a_lock_is_held_until_the_last_process_that_inherited_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let at_once = Duration::ZERO;
        let lock = FolderLock::shared(folder.path(), at_once).unwrap();
        drop(FolderLock::shared(folder.path(), at_once).unwrap());
        let (mut read, write) = std::io::pipe().unwrap();
        let child = crate::fork(|| {
            crate::close_all_except(&[read.as_raw_fd(), lock.as_raw_fd()]);
            io::Read::read(&mut read, &mut [0]).map_or(1, |_| 0)
        })
        .unwrap();
        drop(lock);
        let refused = FolderLock::alone(folder.path(), at_once).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        drop(write);
        assert_eq!(end_of(child), 0);
        let alone = FolderLock::alone(folder.path(), Duration::from_secs(60)).unwrap();
        assert!(FolderLock::shared(folder.path(), at_once).is_err());
        drop(alone);
        assert_eq!(
            FolderLock::alone(&folder.path().join("no"), at_once).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
