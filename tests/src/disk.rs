//! A file system of its own, in a file, for what needs another one than the machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Scratch, command};

/// A mounted file system. It goes when this is dropped, with what is mounted in it.
#[derive(Debug)]
pub struct Disk {
    scratch: Scratch,
}

impl Disk {
    /// Makes and mounts one: `kind` is `btrfs`, `ext4` or another that there is a program for.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(kind: &str, megabytes: u64) -> Self {
        let scratch = Scratch::new();
        let (file, target) = (scratch.join("disk"), scratch.join("mounted"));
        make_file_system(&file, kind, megabytes);
        std::fs::create_dir(&target).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop", "-t", kind]).arg(&file).arg(&target);
        command::run(mount).ok();
        Self { scratch }
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.scratch.join("mounted")
    }

    /// Path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

/// Makes a file with an empty file system.
///
/// # Panics
/// When it cannot be made.
pub fn make_file_system(file: &Path, kind: &str, megabytes: u64) {
    std::fs::File::create(file).unwrap().set_len(megabytes << 20).unwrap();
    let mut make = Command::new(format!("/sbin/mkfs.{kind}"));
    make.arg("-q").arg(file);
    command::run(make).ok();
}

/// Loop devices whose file lies below a folder.
pub fn loop_devices(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    for device in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.starts_with(&folder) {
            found.push(format!("{}: {}", device.file_name().display(), file.trim()));
        }
    }
    found
}
