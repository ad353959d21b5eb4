//! Mounts: makes a list of them on a directory and takes them away again. Options are those of mount(8);
//! sub-paths of the target are resolved inside of it. Nothing here decides what to mount.

mod options;
mod table;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use corten_types::{Error, Mount, Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_remount, move_mount, unmount,
};

use options::Options;
pub use table::{mount_points, mount_points_below};

/// Longest option string of the classic call, one page.
const PAGE: usize = 4096 - 512;

/// Mounts a list, in order. What was mounted is taken away again if one fails.
///
/// # Errors
/// Those of the kernel, with the mount that failed.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for one in mounts {
        if let Err(error) = mount_one(one, target) {
            unmount_all(target).ok();
            let text = format!("failed to mount {} {} on {}", one.kind, one.source, target.display());
            return Err(error.context(text));
        }
    }
    Ok(())
}

fn mount_one(one: &Mount, target: &Path) -> Result<()> {
    let target = resolve(target, &one.target)?;
    let options = Options::parse(&one.options);
    if let Some(unknown) = options.data.iter().find(|option| option.starts_with("X-containerd.")) {
        return Err(Error::invalid_argument(format!("mount option {unknown} is not understood here")));
    }
    if options.bind {
        bind(&one.source, &target, &options)?;
    } else if one.kind == "overlay"
        && options.data.iter().map(|option| option.len() + 1).sum::<usize>() > PAGE
    {
        long_overlay(&target, &options)?;
    } else {
        let data = std::ffi::CString::new(options.data.join(","))
            .map_err(|_| Error::invalid_argument("mount options contain NUL"))?;
        mount(&one.source, &target, &one.kind, options.flags, data.as_c_str())
            .map_err(std::io::Error::from)?;
    }
    if !options.propagation.is_empty() {
        mount_change(&target, options.propagation).map_err(std::io::Error::from)?;
    }
    Ok(())
}

fn bind(source: &str, target: &Path, options: &Options) -> Result<()> {
    if options.recursive {
        mount_bind_recursive(source, target).map_err(std::io::Error::from)?;
    } else {
        mount_bind(source, target).map_err(std::io::Error::from)?;
    }
    // The kernel ignores other flags of a bind mount: a second call sets them.
    if !options.flags.is_empty() {
        mount_remount(target, MountFlags::BIND | options.flags, c"").map_err(std::io::Error::from)?;
    }
    Ok(())
}

/// An overlay of more layers than fit into a page of options: one option at a time.
fn long_overlay(target: &Path, options: &Options) -> Result<()> {
    let system = |error: rustix::io::Errno| Error::from(std::io::Error::from(error));
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(system)?;
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    fsconfig_set_string(context.as_fd(), "lowerdir+", layer).map_err(system)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value).map_err(system)?,
            None => fsconfig_set_flag(context.as_fd(), option.as_str()).map_err(system)?,
        }
    }
    fsconfig_create(context.as_fd()).map_err(system)?;
    let mut attributes = MountAttrFlags::empty();
    if options.flags.contains(MountFlags::RDONLY) {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(system)?;
    move_mount(mounted.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(system)
}

/// The place of a sub-path inside of a directory, wherever its links point.
fn resolve(target: &Path, inner: &str) -> Result<PathBuf> {
    if inner.is_empty() {
        return Ok(target.to_owned());
    }
    let system = |error: rustix::io::Errno| Error::from(std::io::Error::from(error));
    let root = rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let inside = openat2(
        root.map_err(system)?,
        inner.trim_start_matches('/'),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let inside = inside.map_err(system).with_context(|| format!("mount target {inner}"))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inside));
    Ok(std::fs::read_link(link)?)
}

/// Takes away everything mounted on or below a directory, the last first. Nothing mounted is no error.
///
/// # Errors
/// Those of the kernel for what cannot even be detached.
pub fn unmount_all(target: &Path) -> Result<()> {
    for point in mount_points_below(target)? {
        unmount_one(&point)?;
    }
    Ok(())
}

/// Takes away what is mounted on exactly this directory, without looking further.
///
/// # Errors
/// Those of the kernel for what cannot even be detached; that nothing is mounted is none.
pub fn unmount_one(target: &Path) -> Result<()> {
    for flags in [UnmountFlags::NOFOLLOW, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH] {
        match unmount(target, flags) {
            Err(rustix::io::Errno::BUSY) => {}
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(std::io::Error::from(error))
                    .with_context(|| format!("unmount {}", target.display()));
            }
        }
    }
    Ok(())
}

/// A list of mounts on a private directory, gone when this is dropped.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
}

impl TempMount {
    /// Mounts on a new directory below `folder`.
    ///
    /// # Errors
    /// As [`mount_all`].
    pub fn new(folder: &Path, mounts: &[Mount]) -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = folder.join(format!("mount-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let this = Self { path };
        mount_all(mounts, &this.path)?;
        // What happens in here is nobody else's business.
        mount_change(&this.path, MountPropagationFlags::PRIVATE).ok();
        Ok(this)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        if unmount_all(&self.path).is_ok() {
            std::fs::remove_dir(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_of(kind: &str, source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.display().to_string(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn binds_overlays_and_sub_paths_are_mounted_and_gone_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["lower/sub", "upper", "work", "target", "other"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("lower/file"), "lower").unwrap();
        let bind = mount_of("bind", &at("lower"), &["ro", "rbind"]);
        mount_all(&[bind], &at("target")).unwrap();
        assert!(std::fs::write(at("target/new"), "x").is_err());
        unmount_all(&at("target")).unwrap();
        let overlay = |filler: usize| {
            let lower = vec![at("lower").display().to_string(); 1 + filler].join(":");
            let dirs = ["workdir=", "upperdir="].iter().zip(["work", "upper"]);
            let mut options: Vec<String> =
                dirs.map(|(key, name)| format!("{key}{}", at(name).display())).collect();
            options.push(format!("lowerdir={lower}"));
            Mount { kind: "overlay".into(), source: "overlay".into(), options, ..Mount::default() }
        };
        let mut inner = mount_of("bind", &at("other"), &["rbind"]);
        inner.target = "/sub/../../../sub".into();
        mount_all(&[overlay(0), inner], &at("target")).unwrap();
        std::fs::write(at("target/sub/in-other"), "x").unwrap();
        assert!(at("other/in-other").exists());
        std::fs::write(at("target/file"), "upper").unwrap();
        unmount_all(&at("target")).unwrap();
        assert_eq!(std::fs::read_to_string(at("upper/file")).unwrap(), "upper");
        assert!(mount_points_below(folder.path()).unwrap().is_empty());
        let failed = mount_all(&[mount_of("bind", &at("none"), &["rbind"])], &at("target")).unwrap_err();
        assert!(failed.to_string().contains("no such file or directory"), "{failed}");
    }
}
