//! A disk that can lose its power: a file system on a loop device whose file is cloned at any moment.
//!
//! The clone must be of one instant, which a copy of a file that changes is not. So the file lies on a file
//! system with reflinks of its own: there a clone waits for the writes under way and lets none begin, and
//! takes a moment. It holds every write that the device had completed, in order, and nothing that only the
//! memory above the device held. (A device with a volatile cache could also lose what was completed after its
//! last flush. That flushes are sent is the file system's business and not the daemon's.)

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_tests::{Scratch, command, eventually};
use rustix::mount::{UnmountFlags, unmount};

/// Bytes of a disk; it takes up what is written.
const SIZE: u64 = 8 << 30;

/// A file system that is tested, and how it is made, mounted and checked.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    make: &'static [&'static str],
    options: &'static str,
    check: &'static [&'static str],
}

/// Without the help that ext4 gives to programs which do not sync, and with rare commits.
pub const EXT4: Kind = Kind {
    make: &["mkfs.ext4", "-q"],
    options: "loop,noauto_da_alloc,commit=60",
    check: &["e2fsck", "-f", "-n"],
};
/// It keeps the order of names, not of data.
pub const XFS: Kind = Kind { make: &["mkfs.xfs", "-q"], options: "loop", check: &["xfs_repair", "-n"] };
/// An fsync of one file brings nothing else to the disk.
pub const BTRFS: Kind =
    Kind { make: &["mkfs.btrfs", "-q"], options: "loop,commit=60", check: &["btrfs", "check"] };

/// The disk, mounted.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    scratch: Scratch,
    copies: usize,
}

impl Disk {
    /// A new, empty one.
    pub fn new(kind: Kind) -> Self {
        let disk = Self { kind, scratch: Scratch::new(), copies: 0 };
        let below = disk.scratch.join("below.img");
        file(&below);
        run("mkfs.btrfs", [OsStr::new("-q"), below.as_os_str()]);
        mount("loop", &below, &disk.scratch.join("below"));
        let image = disk.image("disk");
        file(&image);
        let (program, options) = kind.make.split_first().unwrap();
        run(program, options.iter().map(OsStr::new).chain([image.as_os_str()]));
        mount(kind.options, &image, &disk.folder());
        disk
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.scratch.join("disk")
    }

    /// The power fails now, on the copy that is made: its number.
    pub fn cut(&mut self) -> usize {
        self.copies += 1;
        let (from, to) = (self.image("disk"), self.image(&self.copies.to_string()));
        rustix::fs::ioctl_ficlone(File::create_new(to).unwrap(), File::open(from).unwrap()).unwrap();
        self.copies
    }

    /// Puts a copy in the place of what is mounted, once its file system says that it is whole.
    pub fn mount_copy(&self, copy: usize) {
        if self.scratch.mounts().contains(&self.folder()) {
            let busy = || unmount(self.folder(), UnmountFlags::empty()).ok();
            eventually("the disk is unmounted", Duration::from_secs(30), busy);
        }
        let image = self.image(&copy.to_string());
        // Mounting brings the journal into effect, as a machine that comes back does.
        mount(self.kind.options, &image, &self.folder());
        unmount(self.folder(), UnmountFlags::empty()).unwrap();
        let (program, options) = self.kind.check.split_first().unwrap();
        run(program, options.iter().map(OsStr::new).chain([image.as_os_str()]));
        mount(self.kind.options, &image, &self.folder());
    }

    fn image(&self, name: &str) -> PathBuf {
        self.scratch.join("below").join(format!("{name}.img"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // In order, since a file that is in use holds the file system below.
        for folder in [self.folder(), self.scratch.join("below")] {
            for _ in 0..500 {
                if !self.scratch.mounts().contains(&folder) || unmount(&folder, UnmountFlags::empty()).is_ok()
                {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn file(path: &Path) {
    File::create_new(path).unwrap().set_len(SIZE).unwrap();
}

fn mount(options: &str, image: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    run("mount", [OsStr::new("-o"), OsStr::new(options), image.as_os_str(), folder.as_os_str()]);
}

fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) {
    let mut line = Command::new(program);
    line.args(args);
    command::run(line).ok();
}
