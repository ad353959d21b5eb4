//! Overlays, of any number of layers.
//!
//! mount(2) takes one page of options. Beyond that, the newer calls take one layer at a time (Linux 6.7);
//! where they cannot, layers are named by handles, whose paths are short.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use corten_types::{Error, Result, ResultExt};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

use crate::options::Options;
use crate::system;

/// Longest value that the newer calls take.
const VALUE: usize = 255;

/// The options as one text. Commas in paths are marked as such.
pub(crate) fn data(options: &Options) -> String {
    let escaped: Vec<String> = options.data.iter().map(|option| option.replace(',', "\\,")).collect();
    escaped.join(",")
}

/// An overlay that is not attached anywhere, made with the newer calls; nothing if they are not known here.
pub(crate) fn detached(options: &Options) -> Result<Option<OwnedFd>> {
    match in_parts(options) {
        Err(failure) if failure.is_ignorance => Ok(None),
        other => other.map(Some).map_err(|failure| failure.error),
    }
}

/// Mounts an overlay whose options do not fit into a page.
pub(crate) fn mount_long(options: &Options, target: &Path) -> Result<()> {
    match by_parts(options, target) {
        Err(error) if error.is_ignorance => by_handles(options, target),
        other => other.map_err(|error| error.error),
    }
}

/// A failure of the newer calls, and whether they are just not known here.
struct Failure {
    error: Error,
    is_ignorance: bool,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        // Sandboxes forbid calls that they do not know.
        Self { error: system(errno), is_ignorance: matches!(errno, Errno::NOSYS | Errno::PERM) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_ignorance: false }
    }
}

fn by_parts(options: &Options, target: &Path) -> Result<(), Failure> {
    let mounted = in_parts(options)?;
    Ok(move_mount(mounted.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn in_parts(options: &Options) -> Result<OwnedFd, Failure> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut held = Vec::new();
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers_of(layers)? {
                    add_layer(context.as_fd(), &layer, &mut held)?;
                }
            }
            Some((key, value)) if value.len() > VALUE && (key == "upperdir" || key == "workdir") => {
                set(context.as_fd(), key, &by_handle(&value.replace('\\', ""), &mut held)?)?;
            }
            Some((key, value)) => set(context.as_fd(), key, value)?,
            None => fsconfig_set_flag(context.as_fd(), option.as_str())
                .map_err(|error| told(context.as_fd(), error).context(option))?,
        }
    }
    fsconfig_create(context.as_fd()).map_err(|error| told(context.as_fd(), error))?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes(options.flags))?)
}

fn add_layer(context: BorrowedFd<'_>, layer: &str, held: &mut Vec<OwnedFd>) -> Result<(), Failure> {
    let short;
    let layer = if layer.len() > VALUE {
        short = by_handle(layer, held)?;
        &short
    } else {
        layer
    };
    match fsconfig_set_string(context, "lowerdir+", layer) {
        // The first one tells whether the kernel knows the option at all.
        Err(Errno::INVAL) => {
            let error = told(context, Errno::INVAL).context(format!("layer {layer}"));
            let is_ignorance = error.message().contains("nknown parameter");
            Err(Failure { error, is_ignorance })
        }
        Err(error) => Err(told(context, error).context(format!("layer {layer}")).into()),
        Ok(()) => Ok(()),
    }
}

fn set(context: BorrowedFd<'_>, key: &str, value: &str) -> Result<(), Failure> {
    fsconfig_set_string(context, key, value).map_err(|error| told(context, error).context(key).into())
}

/// What the kernel says about a failure beyond its number.
fn told(context: BorrowedFd<'_>, errno: Errno) -> Error {
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
        said.push(line.trim_start_matches("e ").trim().to_owned());
    }
    let error = system(errno);
    if said.is_empty() { error } else { error.context(said.join("; ")) }
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ] {
        if flags.contains(flag) {
            attributes |= attribute;
        }
    }
    attributes
}

/// The classic call, with `/proc/self/fd/7` for each layer: some 250 of them fit.
pub(crate) fn by_handles(options: &Options, target: &Path) -> Result<()> {
    let mut held = Vec::new();
    let mut short = Vec::new();
    for option in &options.data {
        short.push(match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                let layers = layers_of(layers)?;
                let layers: Vec<String> =
                    layers.iter().map(|layer| by_handle(layer, &mut held)).collect::<Result<_>>()?;
                format!("lowerdir={}", layers.join(":"))
            }
            _ => option.replace(',', "\\,"),
        });
    }
    let data = CString::new(short.join(",")).map_err(|_| Error::invalid_argument("options contain NUL"))?;
    mount("overlay", target, "overlay", options.flags, data.as_c_str()).map_err(system)
}

fn by_handle(path: &str, held: &mut Vec<OwnedFd>) -> Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = openat(CWD, path, flags, Mode::empty()).map_err(system).with_context(|| path.to_owned())?;
    let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
    held.push(handle);
    Ok(name)
}

/// The layers of a `lowerdir` option, the top first: separated by colons, which a backslash marks as part of
/// a path.
#[must_use]
pub fn overlay_layers(option: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut chars = option.chars();
    while let Some(char) = chars.next() {
        match (char, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(chars.next()),
            (char, Some(layer)) => layer.push(char),
            (_, None) => {}
        }
    }
    layers
}

fn layers_of(option: &str) -> Result<Vec<String>> {
    let layers = overlay_layers(option);
    if layers.iter().any(String::is_empty) {
        return Err(Error::invalid_argument("lowerdir: an empty layer in a list longer than a page"));
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_plain_colons() {
        assert_eq!(layers_of("/a:/b\\:c:/d\\\\e").unwrap(), ["/a", "/b:c", "/d\\e"]);
        assert!(layers_of("/a::/data").is_err());
    }

    #[test]
    fn kernels_without_the_newer_calls_get_short_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut layers = Vec::new();
        for layer in 0..100 {
            layers.push(at(&format!("{layer:0>60}")));
            std::fs::create_dir(layers.last().unwrap()).unwrap();
            std::fs::write(format!("{}/{layer}", layers[layer]), "x").unwrap();
        }
        std::fs::create_dir(at("target")).unwrap();
        let options = Options::parse(&[format!("lowerdir={}", layers.join(":")), "ro".into()]);
        by_handles(&options, Path::new(&at("target"))).unwrap();
        let found = std::fs::read_dir(at("target")).unwrap().count();
        crate::unmount_all(Path::new(&at("target"))).unwrap();
        assert_eq!(found, 100);
    }
}
