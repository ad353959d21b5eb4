//! Tells when the configuration has changed (spec 06 §7.2, §7.3).
//!
//! What counts is the state of the folder: the kernel's events only say when to look at it again. So it does not matter
//! how a file was replaced, or that the folder was removed and made again.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_types::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// How often the folder is looked at without an event: it may lie on a file system that has none.
const ANYWAY: Duration = Duration::from_secs(5);

/// Name, number of the file, size, and the moment of the last change in nanoseconds.
type State = Vec<(std::ffi::OsString, u64, u64, i128)>;

/// Watches a folder.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    events: OwnedFd,
    seen: State,
}

impl Watch {
    /// From now on. The folder need not exist.
    ///
    /// # Errors
    /// Those of inotify(7).
    pub fn new(folder: &Path) -> Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let events = events.map_err(std::io::Error::from)?;
        let watch = Self { folder: folder.to_owned(), events, seen: Vec::new() };
        watch.subscribe();
        Ok(Self { seen: state(folder), ..watch })
    }

    /// The folder may be another one than before; its parent tells when it comes.
    fn subscribe(&self) {
        use inotify::WatchFlags as Flags;
        let flags = Flags::CREATE | Flags::DELETE | Flags::MOVE | Flags::CLOSE_WRITE | Flags::ATTRIB;
        for folder in [Some(self.folder.as_path()), self.folder.parent()].into_iter().flatten() {
            inotify::add_watch(&self.events, folder, flags).ok();
        }
    }

    /// Waits; answers whether something has changed since it was last answered.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn changed(&mut self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        loop {
            self.forget_events();
            self.subscribe();
            let now = state(&self.folder);
            if now != self.seen {
                self.seen = now;
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec::try_from(left.min(ANYWAY)).ok();
            match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
    }

    fn forget_events(&self) {
        let mut buffer = [0_u8; 4096];
        while rustix::io::read(&self.events, &mut buffer).is_ok_and(|count| count > 0) {}
    }
}

fn state(folder: &Path) -> State {
    let mut found: State = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(it) = std::fs::metadata(entry.path()) else { continue };
        let changed = i128::from(it.mtime()) * 1_000_000_000 + i128::from(it.mtime_nsec());
        found.push((entry.file_name(), it.ino(), it.size(), changed));
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_told_once() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("net.d");
        let mut watch = Watch::new(&folder).unwrap();
        let mut told = |what: &str| {
            assert!(watch.changed(Duration::from_secs(60)).unwrap(), "{what}");
            assert!(!watch.changed(Duration::ZERO).unwrap(), "{what}: twice");
        };
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.conf"), "1").unwrap();
        told("the folder comes with a file");
        std::fs::write(folder.join("a.conf"), "22").unwrap();
        told("a file is written");
        std::fs::write(parent.path().join("new"), "33").unwrap();
        std::fs::rename(parent.path().join("new"), folder.join("a.conf")).unwrap();
        told("a file is replaced");
        std::fs::remove_dir_all(&folder).unwrap();
        told("the folder goes");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("b.conf"), "1").unwrap();
        told("it comes again");
    }
}
