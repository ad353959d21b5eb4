//! Loop devices: files as block devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::checked;

/// Numbers of ioctl(2), from the kernel's `linux/loop.h`.
const CONFIGURE: libc::c_ulong = 0x4c0a;
const GET_FREE: libc::c_ulong = 0x4c82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// How often a free device is asked for that others take meanwhile.
const ATTEMPTS: usize = 100;

#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Attaches a file to a free loop device. The device lets go of it by itself when neither the handle that is
/// returned nor a mount holds it.
///
/// # Errors
/// Those of loop(4); `EBUSY` when others take every device that is found.
pub fn attach_loop(file: BorrowedFd<'_>, shown: &Path, read_only: bool) -> io::Result<(File, PathBuf)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: all zeros is a configuration without options.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    config.info.flags = AUTOCLEAR | if read_only { READ_ONLY } else { 0 };
    // Only for people: the last byte stays zero.
    let name = shown.as_os_str().as_bytes();
    for (to, from) in config.info.file_name.iter_mut().take(63).zip(name) {
        *to = *from;
    }
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no memory.
        let number = checked(unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) }.into())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(!read_only).open(&path)?;
        // SAFETY: the configuration outlives the call, which only reads it.
        match checked(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, &raw const config) }.into()) {
            Ok(_) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_a_device_for_as_long_as_somebody_holds_it() {
        // The layout is the kernel's.
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
        let folder = std::env::temp_dir().join(format!("corten-loop-{}", std::process::id()));
        std::fs::write(&folder, [7; 8192]).unwrap();
        let file = File::open(&folder).unwrap();
        let (mut device, path) = attach_loop(file.as_fd(), &folder, true).unwrap();
        std::fs::remove_file(&folder).unwrap();
        let mut data = [0; 512];
        device.read_exact(&mut data).unwrap();
        assert_eq!(data, [7; 512]);
        let backing = Path::new("/sys/block").join(path.file_name().unwrap()).join("loop/backing_file");
        let is_ours = || std::fs::read_to_string(&backing).is_ok_and(|name| name.contains("corten-loop-"));
        assert!(is_ours());
        drop(device);
        for _ in 0..300 {
            if !is_ours() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{} is still attached", path.display());
    }
}
