//! Files whose bytes the kernel checks as they are read: fs-verity, by ioctl(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::checked;

const VERSION: u32 = 1;
const SHA256: u32 = 1;
const BLOCK: u32 = 4096;

/// `fsverity_enable_arg` of the kernel's `linux/fsverity.h`.
#[repr(C)]
struct Arguments {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    unused: u32,
    signature: u64,
    more: [u64; 11],
}

/// The call's number: write, size, type `f`, number.
const ENABLE: libc::c_ulong =
    (1 << 30) | ((size_of::<Arguments>() as libc::c_ulong) << 16) | ((b'f' as libc::c_ulong) << 8) | 133;

/// Makes a file read-only for ever, and has the kernel check its bytes with SHA-256 from now on. It must be open for
/// reading alone.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where kernel or file system cannot; `EEXIST` for one that is so already.
pub fn enable_verity(file: BorrowedFd<'_>) -> io::Result<()> {
    let arguments = Arguments {
        version: VERSION,
        hash_algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        unused: 0,
        signature: 0,
        more: [0; 11],
    };
    // SAFETY: the arguments outlive the call, which only reads them, and have the size that its number says.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &raw const arguments) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_call_is_the_kernels_and_other_file_systems_say_so() {
        assert_eq!(ENABLE, 0x4080_6685);
        let proc = std::fs::File::open("/proc/self/status").unwrap();
        let code = enable_verity(proc.as_fd()).unwrap_err().raw_os_error();
        assert!([Some(libc::ENOTTY), Some(libc::EOPNOTSUPP)].contains(&code), "{code:?}");
    }
}
