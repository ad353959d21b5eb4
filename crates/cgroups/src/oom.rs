//! Memory that ran out, as the kernel tells it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use corten_types::Result;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

use crate::Cgroups;
use crate::groups::write;

/// Becomes readable when memory ran out in a container, or its cgroup goes away.
#[derive(Debug)]
pub struct OomWatch {
    events: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Each event says that it happened; the last one comes with the end of the cgroup.
    V1 { folder: PathBuf },
    /// An event says that the counts of a file changed.
    V2 { file: PathBuf, seen: u64 },
}

impl OomWatch {
    /// Begins to watch. The descriptor does not block.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(cgroups: &Cgroups) -> Result<Option<Self>> {
        if let Some(folder) = cgroups.controller("memory") {
            let events =
                eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
            let control = std::fs::File::open(folder.join("memory.oom_control"))?;
            let line = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
            write(&folder.join("cgroup.event_control"), &line)?;
            return Ok(Some(Self { events, kind: Kind::V1 { folder: folder.to_owned() } }));
        }
        let Some(folder) = cgroups.unified().filter(|_| cgroups.is_unified()) else { return Ok(None) };
        let file = folder.join("memory.events");
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::init(flags).map_err(io::Error::from)?;
        inotify::add_watch(&events, &file, inotify::WatchFlags::MODIFY).map_err(io::Error::from)?;
        let seen = kills(&file);
        Ok(Some(Self { events, kind: Kind::V2 { file, seen } }))
    }

    /// What happened since the last time: whether memory ran out. Nothing when the cgroup is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn check(&mut self) -> io::Result<Option<bool>> {
        let mut buffer = [0; 4096];
        let happened = match rustix::io::read(&self.events, &mut buffer) {
            Ok(_) => true,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        match &mut self.kind {
            Kind::V1 { folder } => Ok(folder.exists().then_some(happened)),
            Kind::V2 { file, seen } => {
                if !file.exists() {
                    return Ok(None);
                }
                let now = kills(file);
                let more = now > *seen;
                *seen = now;
                Ok(Some(more))
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

/// Processes that were killed, by v2's `memory.events`.
fn kills(file: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
