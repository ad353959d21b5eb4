//! A file or folder as an archive.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corten_diff::archive::{Item, Writer};
use corten_tree::Root;
use corten_types::{Error, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};

use super::about;

/// Folders below each other: each is open while those in it are read.
const DEPTH: usize = 256;
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Writes what `path` leads to in `root` as an archive, under the name `name`. A link at its end is itself, unless
/// it is to be followed.
///
/// # Errors
/// Those of the kernel, with the path.
pub fn pack(root: &Root, path: &Path, name: &Path, follow: bool, out: impl Write) -> Result<()> {
    let flags = if follow { OFlags::PATH } else { LOOK };
    let found = root.open_at(path, flags).map_err(|failed| about(path, failed))?;
    let mut packing = Packing { archive: Writer::new(out), names: HashMap::new() };
    packing.add(found, path, name, 0)?;
    packing.archive.finish().map(drop).map_err(Error::from)
}

/// An archive that is being written.
struct Packing<W: Write> {
    archive: Writer<W>,
    /// The first name of each file that has several, by device and inode.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packing<W> {
    fn add(&mut self, found: OwnedFd, path: &Path, name: &Path, depth: usize) -> Result<()> {
        let stat = fstat(&found).map_err(|failed| about(path, failed))?;
        let mut item = item(&stat, name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if depth == DEPTH {
                    return Err(Error::failed_precondition(format!("{}: folders too deep", path.display())));
                }
                // A folder whose contents alone are meant has no entry of its own.
                if !name.as_os_str().is_empty() {
                    item.kind = b'5';
                    item.name.push(b'/');
                    item.attributes =
                        corten_tree::attributes(found.as_fd()).map_err(|failed| about(path, failed))?;
                    self.archive.entry(&item)?;
                }
                self.children(found, path, name, depth)
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    let names = self.names.entry((stat.st_dev, stat.st_ino));
                    if let Entry::Occupied(first) = &names {
                        item.kind = b'1';
                        item.link.clone_from(first.get());
                        return self.archive.entry(&item).map_err(Error::from);
                    }
                    names.or_insert_with(|| item.name.clone());
                }
                item.attributes =
                    corten_tree::attributes(found.as_fd()).map_err(|failed| about(path, failed))?;
                // The handle itself is opened, not a name that may lead elsewhere by now.
                let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
                let file = openat(CWD, itself, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|failed| about(path, failed))?;
                item.kind = b'0';
                item.size = u64::try_from(stat.st_size).unwrap_or(0);
                self.archive.entry(&item)?;
                data(&mut self.archive, File::from(file), item.size).map_err(|failed| about(path, failed))
            }
            FileType::Symlink => {
                let target = readlinkat(&found, c"", Vec::new()).map_err(|failed| about(path, failed))?;
                item.kind = b'2';
                item.link = target.into_bytes();
                self.archive.entry(&item).map_err(Error::from)
            }
            kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                item.kind = match kind {
                    FileType::Fifo => b'6',
                    FileType::CharacterDevice => b'3',
                    _ => b'4',
                };
                item.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                self.archive.entry(&item).map_err(Error::from)
            }
            // Sockets are nothing without who listens on them.
            _ => Ok(()),
        }
    }

    fn children(&mut self, found: OwnedFd, path: &Path, name: &Path, depth: usize) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(&found, c".", flags, Mode::empty()).map_err(|failed| about(path, failed))?;
        drop(found);
        let mut names = corten_tree::names(folder.as_fd()).map_err(|failed| about(path, failed))?;
        names.sort();
        for child in names {
            let below = path.join(OsStr::from_bytes(child.as_bytes()));
            match openat(&folder, &*child, LOOK, Mode::empty()) {
                Ok(found) => {
                    let name = name.join(OsStr::from_bytes(child.as_bytes()));
                    self.add(found, &below, &name, depth + 1)?;
                }
                // It was removed meanwhile.
                Err(rustix::io::Errno::NOENT) => {}
                Err(failed) => return Err(about(&below, failed)),
            }
        }
        Ok(())
    }
}

/// What a file holds. It may grow or shrink meanwhile; it has the length that was told.
fn data(archive: &mut Writer<impl Write>, file: File, length: u64) -> std::io::Result<()> {
    let (mut file, mut buffer) = (file.chain(std::io::repeat(0)).take(length), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => archive.data(buffer.get(..count).unwrap_or_default())?,
            Err(failed) if failed.kind() == std::io::ErrorKind::Interrupted => {}
            Err(failed) => return Err(failed),
        }
    }
}

fn item(stat: &Stat, name: &Path) -> Item {
    Item {
        name: name.as_os_str().as_bytes().to_vec(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: stat.st_mtime,
        ..Item::default()
    }
}
