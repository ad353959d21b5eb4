//! Removal of whole trees.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, openat, unlinkat};
use rustix::io::Errno;

use crate::walk::{FOLDER, Place, list};

/// How often a folder is emptied in which others make files meanwhile.
const ATTEMPTS: usize = 16;

/// Removes what is under a name in a folder, with everything below. What is not there is no error.
///
/// # Errors
/// Those of the kernel: `EBUSY` for a mount point, `EPERM` for what is immutable.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    // Most folders that are in the way of something are empty.
    if unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    for _ in 0..ATTEMPTS {
        let folder = match openat(parent, name, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        empty_place(Place::at(folder))?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// Removes everything in a folder.
///
/// # Errors
/// As [`remove`].
pub fn empty(folder: BorrowedFd<'_>) -> io::Result<()> {
    empty_place(Place::at(openat(folder, c".", FOLDER, Mode::empty())?))
}

fn empty_place(mut place: Place) -> io::Result<()> {
    // For each folder on the way down, the folders in it that are still to be removed.
    let mut pending = vec![unlink_files(&place)?];
    loop {
        let next = pending.last().and_then(|folders| folders.last());
        match next {
            Some(name) => match place.down(name) {
                Ok(()) => pending.push(unlink_files(&place)?),
                // Others removed it or put a file in its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => forget(&mut pending, &place)?,
                Err(error) => return Err(error.into()),
            },
            None => {
                pending.pop();
                if pending.is_empty() {
                    return Ok(());
                }
                place.up()?;
                forget(&mut pending, &place)?;
            }
        }
    }
}

/// Removes the folder that was emptied last.
fn forget(pending: &mut [Vec<CString>], place: &Place) -> io::Result<()> {
    let Some(name) = pending.last_mut().and_then(Vec::pop) else { return Ok(()) };
    match unlinkat(place.handle(), &name, AtFlags::REMOVEDIR) {
        // What others put in meanwhile is found by the next attempt.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes all but the folders, and names those.
fn unlink_files(place: &Place) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    list(place.handle(), |name, kind| {
        if kind != FileType::Directory {
            match unlinkat(place.handle(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        folders.push(name.to_owned());
        Ok(())
    })?;
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, OFlags, mkdirat};

    use super::*;

    #[test]
    fn trees_of_any_depth_are_removed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kept"), "x").unwrap();
        let top = openat(CWD, folder.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        mkdirat(&top, c"deep", Mode::RWXU).unwrap();
        let mut here = openat(&top, c"deep", FOLDER, Mode::empty()).unwrap();
        // Deeper than paths can say and than descriptors reach.
        for _ in 0..5000 {
            rustix::fs::symlinkat(folder.path(), &here, c"link").unwrap();
            mkdirat(&here, c"d", Mode::RWXU).unwrap();
            here = openat(&here, c"d", FOLDER, Mode::empty()).unwrap();
        }
        drop(here);
        assert!(crate::usage(&folder.path().join("deep")).unwrap().inodes >= 10_000);
        remove(top.as_fd(), c"deep").unwrap();
        assert!(!folder.path().join("deep").exists());
        assert!(folder.path().join("kept").exists());
        remove(top.as_fd(), c"deep").unwrap();
    }
}
