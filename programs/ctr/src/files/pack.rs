//! A file or folder as an archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corten_tree::Root;
use corten_types::{Error, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use tar::{Builder, EntryType, Header};

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
    let mut archive = Builder::new(out);
    add(&mut archive, found, path, name, 0)?;
    archive.finish().map_err(Error::from)
}

fn add(
    archive: &mut Builder<impl Write>,
    found: OwnedFd,
    path: &Path,
    name: &Path,
    depth: usize,
) -> Result<()> {
    let stat = fstat(&found).map_err(|failed| about(path, failed))?;
    let mut header = header(&stat);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            if depth == DEPTH {
                return Err(Error::failed_precondition(format!("{}: folders too deep", path.display())));
            }
            // A folder whose contents alone are meant has no entry of its own.
            if !name.as_os_str().is_empty() {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, name, std::io::empty())?;
            }
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
                        add(archive, found, &below, &name, depth + 1)?;
                    }
                    // It was removed meanwhile.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(failed) => return Err(about(&below, failed)),
                }
            }
            Ok(())
        }
        FileType::RegularFile => {
            // The handle itself is opened, not a name that may lead elsewhere by now.
            let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
            let file = openat(CWD, itself, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|failed| about(path, failed))?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            // A file may grow or shrink meanwhile; it has the length that was told.
            let data = File::from(file).chain(std::io::repeat(0)).take(size);
            archive.append_data(&mut header, name, data).map_err(|failed| about(path, failed))
        }
        FileType::Symlink => {
            let target = readlinkat(&found, c"", Vec::new()).map_err(|failed| about(path, failed))?;
            header.set_entry_type(EntryType::Symlink);
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            archive.append_link(&mut header, name, target).map_err(|failed| about(path, failed))
        }
        kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
            header.set_entry_type(match kind {
                FileType::Fifo => EntryType::Fifo,
                FileType::CharacterDevice => EntryType::Char,
                _ => EntryType::Block,
            });
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
            archive.append_data(&mut header, name, std::io::empty()).map_err(|failed| about(path, failed))
        }
        // Sockets are nothing without who listens on them.
        _ => Ok(()),
    }
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}
