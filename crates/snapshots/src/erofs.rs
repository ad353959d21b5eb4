//! Snapshots as erofs images: `snapshots/<number>/layer.erofs` once it is committed, until then
//! `snapshots/<number>/{fs,work}` as with overlayfs.
//!
//! The image of a parent is mounted at its `fs` when somebody needs it, and stays so until it is removed: a
//! restart finds it there, and after a reboot it is mounted again. A differ may write `layer.erofs` by
//! itself; what it did not write is made from `fs`.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use corten_types::{Error, ErrorClass, Mount, Result, ResultExt};
use rustix::fs::{AtFlags, CWD, IFlags, StatxAttributes, StatxFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use crate::backend::{self, Backend, Snapshot, Usage};
use crate::du;

const MAGIC: u64 = 0xe0f5_e1e2;
/// The image of a layer.
const LAYER: &str = "layer.erofs";
/// Tells differs whose folder this is.
const MARK: &str = ".erofslayer";
/// Tells that the image was made from `fs`, and is made again if its commit was not recorded.
const CONVERTED: &str = ".converted";

/// Settings of the snapshotter.
#[derive(Clone, Debug, Default)]
pub struct ErofsOptions {
    /// Options added to every overlay.
    pub ovl_mount_options: Vec<String>,
    /// Whether images get the attribute that nobody can change them.
    pub set_immutable: bool,
    /// Whether the kernel checks the bytes of images (fs-verity).
    pub enable_fsverity: bool,
    /// Arguments of `mkfs.erofs` beside ours.
    pub mkfs_options: Vec<String>,
}

/// The erofs snapshotter.
#[derive(Debug)]
pub struct Erofs {
    root: PathBuf,
    options: ErofsOptions,
    /// Held while it is decided whether an image is to be mounted.
    mounting: Mutex<()>,
}

impl Erofs {
    /// Opens it in a folder, which is made if need be.
    ///
    /// # Errors
    /// FailedPrecondition with `skip plugin` where the kernel has no erofs; those of the file system.
    pub fn open(root: &Path, options: ErofsOptions) -> Result<Self> {
        let known = std::fs::read_to_string("/proc/filesystems")?;
        if !known.lines().any(|line| line.trim() == "erofs") {
            let text = "EROFS unsupported, please `modprobe erofs`: skip plugin";
            return Err(Error::bare(ErrorClass::FailedPrecondition, text));
        }
        std::fs::create_dir_all(root.join("snapshots")).with_context(|| root.display().to_string())?;
        for folder in [root.to_owned(), root.join("snapshots")] {
            std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        }
        if options.enable_fsverity {
            let what = || format!("failed to check fsverity support on {:?}", root.display().to_string());
            can_verify(root).with_context(what)?;
        }
        Ok(Self { root: root.to_owned(), options, mounting: Mutex::default() })
    }

    fn folder(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn at(&self, id: u64, name: &str) -> PathBuf {
        self.folder().join(id.to_string()).join(name)
    }

    fn text(&self, id: u64, name: &str) -> String {
        self.at(id, name).display().to_string()
    }

    fn make(&self, new: &Path, snapshot: &Snapshot) -> Result<()> {
        std::fs::create_dir(new)?;
        std::fs::set_permissions(new, Permissions::from_mode(0o700))?;
        File::create(new.join(MARK))?;
        let mut folders = vec![("fs", 0o755)];
        if snapshot.is_active() {
            folders.push(("work", 0o711));
        }
        for (name, mode) in folders {
            std::fs::create_dir(new.join(name))?;
            std::fs::set_permissions(new.join(name), Permissions::from_mode(mode))?;
        }
        let Some(parent) = snapshot.parents.first().filter(|_| snapshot.is_active()) else { return Ok(()) };
        // The top directory is not merged: it is the parent's.
        self.show(*parent)?;
        let (above, below) = (new.join("fs"), std::fs::metadata(self.at(*parent, "fs"))?);
        chown(&above, Some(below.uid()), Some(below.gid()))?;
        Ok(std::fs::set_permissions(&above, Permissions::from_mode(below.mode() & 0o7777))?)
    }

    /// Makes sure that a committed snapshot is to be seen at its `fs`.
    fn show(&self, id: u64) -> Result<()> {
        let _guard = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = self.at(id, "fs");
        if is_mounted(&fs)? {
            return Ok(());
        }
        // What the image was made from, if a crash left it.
        empty(&fs)?;
        self.verified(id)?;
        corten_mounts::mount_all(&[image(&self.text(id, LAYER))], &fs)
    }

    /// Takes the mount away, and the attribute that keeps the image.
    fn release(&self, folder: &Path) -> Result<()> {
        let _guard = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = folder.join("fs");
        if fs.exists() && is_mounted(&fs)? {
            corten_mounts::unmount_all(&fs)?;
        }
        if self.options.set_immutable
            && let Ok(file) = File::open(folder.join(LAYER))
            && let Ok(flags) = ioctl_getflags(&file)
            && flags.contains(IFlags::IMMUTABLE)
        {
            ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE)).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Refuses an image that the kernel does not check, if it has to.
    fn verified(&self, id: u64) -> Result<()> {
        if !self.options.enable_fsverity {
            return Ok(());
        }
        let layer = self.at(id, LAYER);
        let flags = rustix::fs::statx(CWD, &layer, AtFlags::empty(), StatxFlags::TYPE);
        let known = flags.map_err(io::Error::from)?.stx_attributes.contains(StatxAttributes::VERITY);
        let text = || format!("fsverity is not enabled on {:?}", layer.display().to_string());
        if known { Ok(()) } else { Err(Error::failed_precondition(text())) }
    }

    /// Makes the image from what was written.
    fn convert(&self, id: u64) -> Result<()> {
        let (layer, new) = (self.at(id, LAYER), self.at(id, "new.erofs"));
        if layer.exists() {
            // An earlier try whose record was not written.
            self.release(&self.folder().join(id.to_string()))?;
        }
        File::create(self.at(id, CONVERTED))?;
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut make = Command::new("mkfs.erofs");
        make.args(["--quiet", "-Enoinline_data"]).args(&self.options.mkfs_options);
        make.arg(&new).arg(self.at(id, "fs"));
        let made = make.output().context("could not find mkfs.erofs")?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(Error::unknown(format!(
                "failed to convert to erofs: mkfs.erofs: {}: {said}",
                made.status
            )));
        }
        Ok(std::fs::rename(&new, &layer)?)
    }
}

impl Backend for Erofs {
    fn name(&self) -> &str {
        "erofs"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn create(&self, snapshot: &Snapshot) -> Result<()> {
        let new = self.folder().join(format!("new-{}", snapshot.id));
        std::fs::remove_dir_all(&new).ok();
        let made = self.make(&new, snapshot);
        let made =
            made.and_then(|()| Ok(std::fs::rename(&new, self.folder().join(snapshot.id.to_string()))?));
        if made.is_err() {
            std::fs::remove_dir_all(&new).ok();
        }
        made.context("failed to create snapshot directory")
    }

    fn mounts(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let id = snapshot.id;
        match (snapshot.parents.as_slice(), snapshot.is_active()) {
            ([], active) => {
                let mode = if active { "rw" } else { "ro" };
                let options = vec![mode.into(), "rbind".into()];
                let source = self.text(id, "fs");
                return Ok(vec![Mount { kind: "bind".into(), source, target: String::new(), options }]);
            }
            ([parent], false) => {
                self.verified(*parent)?;
                return Ok(vec![image(&self.text(*parent, LAYER))]);
            }
            _ => {}
        }
        let mut options = Vec::new();
        if snapshot.is_active() {
            options.push(format!("workdir={}", self.text(id, "work")));
            options.push(format!("upperdir={}", self.text(id, "fs")));
        }
        snapshot.parents.iter().try_for_each(|parent| self.show(*parent))?;
        let lower: Vec<String> = snapshot.parents.iter().map(|parent| self.text(*parent, "fs")).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.ovl_mount_options.iter().cloned());
        Ok(vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }

    fn commit(&self, snapshot: &Snapshot) -> Result<Usage> {
        let id = snapshot.id;
        if !self.at(id, LAYER).exists() || self.at(id, CONVERTED).exists() {
            self.convert(id)?;
        }
        let file = File::open(self.at(id, LAYER))?;
        file.sync_all().context("failed to sync the image")?;
        File::open(self.folder().join(id.to_string()))?.sync_all()?;
        File::open(self.folder())?.sync_all()?;
        if self.options.enable_fsverity {
            match corten_sys::enable_verity(file.as_fd()) {
                // An earlier try whose record was not written.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.context("enable fsverity failed")?,
            }
        }
        if self.options.set_immutable
            && let Ok(flags) = ioctl_getflags(&file)
        {
            ioctl_setflags(&file, flags | IFlags::IMMUTABLE)
                .map_err(io::Error::from)
                .context("failed to set IMMUTABLE_FL")?;
        }
        Ok(Usage { size: file.metadata()?.blocks() * 512, inodes: 1 })
    }

    fn committed(&self, id: u64) {
        let _guard = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = self.at(id, "fs");
        let emptied = is_mounted(&fs).and_then(|mounted| if mounted { Ok(()) } else { empty(&fs) });
        if let Err(error) = emptied {
            tracing::warn!(id, %error, "what a layer was made from stays until it is used or removed");
        }
    }

    fn usage(&self, snapshot: &Snapshot) -> Result<Usage> {
        du::usage(&self.at(snapshot.id, "fs"))
    }

    fn ids(&self) -> Result<BTreeSet<u64>> {
        backend::numbers(&self.folder())
    }

    fn holds(&self, id: u64) -> bool {
        self.at(id, "fs").is_dir()
    }

    fn remove(&self, id: u64) -> Result<()> {
        self.release(&self.folder().join(id.to_string()))?;
        backend::remove(&self.folder(), id)
    }

    fn clean(&self) -> Result<()> {
        backend::clean(&self.folder())
    }
}

/// The mount of an image.
fn image(path: &str) -> Mount {
    let options = vec!["ro".to_owned(), "loop".to_owned()];
    Mount { kind: "erofs".to_owned(), source: path.to_owned(), target: String::new(), options }
}

/// Tries on a file of its own whether the kernel can check bytes here.
fn can_verify(root: &Path) -> Result<()> {
    let probe = root.join(".fsverity-check");
    std::fs::write(&probe, [0; 4096])?;
    let enabled = File::open(&probe).and_then(|file| corten_sys::enable_verity(file.as_fd()));
    std::fs::remove_file(&probe)?;
    let enabled = enabled.map_err(|error| match error.raw_os_error() {
        // As the C library says it.
        Some(code) if code == Errno::NOTTY.raw_os_error() || code == Errno::OPNOTSUPP.raw_os_error() => {
            Error::unknown("operation not supported")
        }
        _ => error.into(),
    });
    enabled.context("enable fsverity failed")
}

fn is_mounted(folder: &Path) -> Result<bool> {
    let kind = rustix::fs::statfs(folder).map_err(io::Error::from)?.f_type;
    Ok(u64::try_from(kind) == Ok(MAGIC))
}

/// Removes what is in a folder, which stays.
fn empty(folder: &Path) -> Result<()> {
    Ok(corten_tree::empty(corten_tree::Root::open(folder)?.handle())?)
}
