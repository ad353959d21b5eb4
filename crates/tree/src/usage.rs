//! How much a tree takes on disk.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::walk::{FOLDER, Place, kind, list};

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in allocated blocks.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Counts the blocks of a tree, each inode once; what is mounted in it is left out. The tree may change
/// meanwhile.
///
/// # Errors
/// Those of the kernel.
pub fn usage(root: &Path) -> io::Result<Usage> {
    let folder = openat(CWD, root, FOLDER, Mode::empty())?;
    let stat = fstat(&folder)?;
    let mut count = Count { device: stat.st_dev, linked: HashSet::new(), usage: Usage::default() };
    count.add(&stat);
    let mut place = Place::at(folder);
    let mut pending = vec![count.folder(&place)?];
    while let Some(folders) = pending.last_mut() {
        match folders.pop() {
            Some(name) => match place.down(&name) {
                Ok(()) => pending.push(count.folder(&place)?),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            },
            None => {
                pending.pop();
                if place.depth() > 0 {
                    place.up()?;
                }
            }
        }
    }
    Ok(count.usage)
}

struct Count {
    device: u64,
    /// Inodes of several names.
    linked: HashSet<u64>,
    usage: Usage,
}

impl Count {
    /// Counts what is in a folder, and names the folders.
    fn folder(&mut self, place: &Place) -> io::Result<Vec<CString>> {
        let mut folders = Vec::new();
        list(place.handle(), |name, _| {
            let stat = match statat(place.handle(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if self.add(&stat) && kind(&stat) == FileType::Directory {
                folders.push(name.to_owned());
            }
            Ok(())
        })?;
        Ok(folders)
    }

    /// Whether it lies in the same file system and is counted now.
    fn add(&mut self, stat: &Stat) -> bool {
        let shared = stat.st_nlink > 1 && kind(stat) != FileType::Directory;
        if stat.st_dev != self.device || (shared && !self.linked.insert(stat.st_ino)) {
            return false;
        }
        self.usage.size += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.usage.inodes += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_count_not_lengths_and_links_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let empty = usage(folder.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        std::fs::write(at("file"), vec![7; 10_000]).unwrap();
        std::fs::hard_link(at("file"), at("again")).unwrap();
        std::fs::File::create(at("holes")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", at("link")).unwrap();
        rustix::fs::sync();
        let full = usage(folder.path()).unwrap();
        assert_eq!(full.inodes, 4);
        assert_eq!(full.size - empty.size, 12 << 10);
    }
}
