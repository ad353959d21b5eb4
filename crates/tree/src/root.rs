//! A folder that no path leads out of.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// Links, `..` and absolute paths stay inside; the links of /proc, which lead anywhere, are refused.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// How often a resolution is repeated that others disturb by renaming.
const ATTEMPTS: usize = 100;

/// A folder that serves as the root of paths (`openat2` with `RESOLVE_IN_ROOT`).
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens a folder; its own path is trusted.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: openat(CWD, path, flags, Mode::empty())? })
    }

    /// A folder that is open already, if only as a path.
    #[must_use]
    pub fn of(folder: OwnedFd) -> Self {
        Self { folder }
    }

    /// The handle of the folder itself.
    #[must_use]
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Opens what a path leads to, following links inside of the root.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::CLOEXEC;
        let mut attempts = ATTEMPTS;
        loop {
            match openat2(&self.folder, path, flags, Mode::empty(), INSIDE) {
                // Something was renamed meanwhile, and the kernel cannot tell whether it is still inside.
                Err(Errno::AGAIN) if attempts > 0 => attempts -= 1,
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Reads a regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// Those of the kernel; InvalidInput for what is no regular file; FileTooLarge.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        // Neither a device nor a pipe is touched: it is looked at before it is opened for reading.
        let found = self.open_at(path, OFlags::PATH)?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let itself = crate::walk::itself(found.as_fd());
        let file = File::from(openat(CWD, itself, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        let mut data = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut data)?;
        if data.len() as u64 > limit {
            let text = format!("larger than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(data)
    }
}

/// A name as archives and links have it, as a relative path: `.` and empty parts are dropped, `..` takes the
/// part before it away and never leads out.
#[must_use]
pub fn clean(name: &[u8]) -> PathBuf {
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                path.pop();
            }
            part => path.push(Path::new(OsStr::from_bytes(part))),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_inside() {
        for (name, path) in
            [("./a/../../../etc/passwd", "etc/passwd"), ("/abs//x/", "abs/x"), ("./", ""), ("../..", "")]
        {
            assert_eq!(clean(name.as_bytes()), Path::new(path), "{name}");
        }
    }

    #[test]
    fn links_stay_inside_and_only_bounded_regular_files_are_read() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "outside").unwrap();
        let inside = outside.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::write(inside.join("etc/passwd"), "inside").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        link("../../../etc", "up");
        link("/etc/passwd", "absolute");
        link(outside.path().to_str().unwrap(), "away");
        link("/proc/self/root/etc/passwd", "magic");
        let root = Root::open(&inside).unwrap();
        for path in ["up/passwd", "absolute", "/etc/passwd", "../../etc/passwd"] {
            assert_eq!(root.read(Path::new(path), 6).unwrap(), b"inside", "{path}");
        }
        assert_eq!(root.read(Path::new("away/passwd"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(root.read(Path::new("magic"), 9).is_err());
        assert_eq!(root.read(Path::new("absolute"), 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // A pipe would block, and a folder has no bytes.
        rustix::fs::mknodat(CWD, inside.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in ["pipe", "etc"] {
            assert_eq!(root.read(Path::new(path), 9).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
