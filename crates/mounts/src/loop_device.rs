//! Mounts of files, by loop devices.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use corten_types::{Result, ResultExt};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::options::Options;
use crate::system;

/// Mounts a file as a file system. The loop device goes with the mount.
pub(crate) fn mount_file(
    source: &str,
    target: &Path,
    kind: &str,
    options: &Options,
    data: &CStr,
) -> Result<()> {
    if kind == "erofs" {
        // Linux 6.12 reads such files without a device.
        match mount(source, target, kind, options.flags, data) {
            Err(Errno::NOTBLK | Errno::INVAL) => {}
            other => return other.map_err(system),
        }
    }
    let read_only = options.flags.contains(MountFlags::RDONLY);
    let file = File::options().read(true).write(!read_only).open(source);
    let file = file.with_context(|| format!("failed to open loop file: {source}"))?;
    let (device, path) = corten_sys::attach_loop(file.as_fd(), Path::new(source), read_only)
        .with_context(|| format!("failed to attach loop file: {source}"))?;
    let mounted = mount(&path, target, kind, options.flags, data).map_err(system);
    // Held until here, so that the device does not go before it is mounted.
    drop(device);
    mounted
}
