//! Making mounts.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;

use corten_types::{Error, Mount, Result, ResultExt};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount};

use crate::identities::Identities;
use crate::loop_device;
use crate::options::Options;
use crate::overlay;
use crate::system;
use crate::target::Target;
use crate::unmount::unmount_all;

/// Longest text of options that the kernel takes in one call: a page with its final NUL.
const PAGE: usize = 4096 - 1;
/// As much of the options as is shown in an error.
const SHOWN: usize = 1024;

/// Mounts a list, in order. What was mounted is taken away again if one fails.
///
/// # Errors
/// Those of the kernel, with the mount that failed.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (index, one) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(one, target) {
            if index > 0 {
                unmount_all(target).ok();
            }
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(one: &Mount, folder: &Path) -> Result<()> {
    let mut options = Options::parse(&one.options);
    let identities = Identities::take(&mut options)?;
    check(&options)?;
    let target = Target { folder, inner: &one.target };
    let made = if let Some(kind) = one.kind.strip_prefix("fuse.").or(one.kind.strip_prefix("fuse3.")) {
        by_helper(one, kind, &target)
    } else {
        by_kernel(one, &options, identities.as_ref(), &target)
    };
    made.map_err(|error| describe(one, &options, folder, &error))?;
    for propagation in &options.propagation {
        mount_change(target.place()?.path(), *propagation)
            .map_err(system)
            .with_context(|| format!("propagation of {}", folder.display()))?;
    }
    Ok(())
}

/// Options that the kernel would not understand, or worse, that it would ignore.
fn check(options: &Options) -> Result<()> {
    match options.data.iter().find(|option| option.starts_with("X-containerd.")) {
        Some(option) => Err(Error::invalid_argument(format!("mount option {option} is not understood here"))),
        None => Ok(()),
    }
}

fn by_kernel(
    one: &Mount,
    options: &Options,
    identities: Option<&Identities>,
    target: &Target<'_>,
) -> Result<()> {
    let place = target.place()?;
    if options.remount {
        let data = text(options.data.join(","))?;
        return mount_remount(place.path(), options.flags, data).map_err(system);
    }
    if options.bind || one.kind == "bind" {
        match identities {
            Some(identities) => identities.bind(&one.source, options.recursive, place.path())?,
            None if options.recursive => {
                mount_bind_recursive(one.source.as_str(), place.path()).map_err(system)?;
            }
            None => mount_bind(one.source.as_str(), place.path()).map_err(system)?,
        }
        return restrict(options, target).inspect_err(|_| {
            unmount_all(place.path()).ok();
        });
    }
    if let Some(identities) = identities {
        if one.kind != "overlay" {
            let text = format!("idmapped mounts of type {} are not supported", one.kind);
            return Err(Error::not_implemented(text));
        }
        return identities.overlay(options, place.path());
    }
    let data = if one.kind == "overlay" { overlay::data(options) } else { options.data.join(",") };
    if one.kind == "overlay" && data.len() > PAGE {
        return overlay::mount_long(options, place.path());
    }
    let data = text(data)?;
    if options.on_loop {
        return loop_device::mount_file(&one.source, place.path(), &one.kind, options, &data);
    }
    mount(one.source.as_str(), place.path(), one.kind.as_str(), options.flags, data.as_c_str())
        .map_err(system)
}

/// The kernel takes no flags for a bind mount: a second call sets them. What the mount has from its source
/// stays, unless it was taken away by name.
fn restrict(options: &Options, target: &Target<'_>) -> Result<()> {
    if options.flags.is_empty() {
        return Ok(());
    }
    // Looked up again, so that it is the new mount and not what is below it.
    let place = target.place()?;
    let now = statvfs(place.path()).map_err(system)?.f_flag;
    let mut flags = options.flags | MountFlags::BIND;
    for (has, flag) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        if now.contains(has) && !options.cleared.contains(flag) {
            flags |= flag;
        }
    }
    mount_remount(place.path(), flags, c"").map_err(system).context("remount")
}

/// FUSE file systems are mounted by a program of theirs, which `mount.fuse` finds.
fn by_helper(one: &Mount, kind: &str, target: &Target<'_>) -> Result<()> {
    let helper = if one.kind.starts_with("fuse3.") { "mount.fuse3" } else { "mount.fuse" };
    let place = target.place()?;
    // A path through a handle means nothing to another process.
    let path = std::fs::canonicalize(place.path())?;
    let mut command = Command::new(helper);
    command.arg(&one.source).arg(path).args(["-t", kind]);
    if !one.options.is_empty() {
        command.arg("-o").arg(one.options.join(","));
    }
    let output = command.output().context(helper)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::unknown(format!("{helper}: {}: {}", output.status, said.trim())));
    }
    Ok(())
}

fn text(data: String) -> Result<CString> {
    CString::new(data).map_err(|_| Error::invalid_argument("mount options contain NUL"))
}

/// In the words of the original.
fn describe(one: &Mount, options: &Options, target: &Path, error: &Error) -> Error {
    let data = options.data.join(",");
    let end = (0..=SHOWN.min(data.len())).rev().find(|end| data.is_char_boundary(*end)).unwrap_or(0);
    let more = if end < data.len() { "…" } else { "" };
    let text = format!(
        "mount source: {:?}, target: {:?}, fstype: {}, flags: {}, data: \"{}{more}\", err: {}",
        one.source,
        target.join(one.target.trim_start_matches('/')),
        one.kind,
        options.flags.bits(),
        data.get(..end).unwrap_or_default(),
        error.message()
    );
    Error::bare(error.class(), text)
}
