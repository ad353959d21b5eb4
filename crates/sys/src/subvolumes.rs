//! Subvolumes of btrfs, by ioctl(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::checked;

/// Bytes of the arguments of all calls here.
const SIZE: usize = 4096;
/// Longest name, with its NUL, in the second form of the arguments: the shorter one.
const NAME: usize = 4040;
const SUBVOLUME_READ_ONLY: u64 = 1 << 1;
/// Inode number of the top directory of each subvolume.
const TOP: u64 = 256;

/// Numbers of ioctl(2), from the kernel's `linux/btrfs.h`: direction, size, type 0x94, number.
const fn number(direction: libc::c_ulong, call: libc::c_ulong) -> libc::c_ulong {
    (direction << 30) | ((SIZE as libc::c_ulong) << 16) | (0x94 << 8) | call
}

const SUBVOLUME_CREATE: libc::c_ulong = number(1, 14);
const SNAPSHOT_DESTROY: libc::c_ulong = number(1, 15);
const INODE_LOOKUP: libc::c_ulong = number(3, 18);
const SNAPSHOT_CREATE: libc::c_ulong = number(1, 23);

#[repr(C)]
struct Arguments {
    fd: i64,
    name: [u8; SIZE - 8],
}

#[repr(C)]
struct SnapshotArguments {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME],
}

#[repr(C)]
struct Lookup {
    tree: u64,
    object: u64,
    name: [u8; SIZE - 16],
}

fn put(name: &CStr, field: &mut [u8]) -> io::Result<()> {
    let name = name.to_bytes_with_nul();
    let field = field.get_mut(..name.len().min(NAME)).filter(|field| field.len() == name.len());
    field.ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?.copy_from_slice(name);
    Ok(())
}

fn with_name(folder: BorrowedFd<'_>, call: libc::c_ulong, name: &CStr) -> io::Result<()> {
    let mut arguments = Arguments { fd: 0, name: [0; SIZE - 8] };
    put(name, &mut arguments.name)?;
    // SAFETY: the arguments outlive the call, which only reads them, and have the size that its number says.
    checked(unsafe { libc::ioctl(folder.as_raw_fd(), call as _, &raw const arguments) }.into()).map(drop)
}

/// Makes an empty subvolume in a folder.
///
/// # Errors
/// Those of the kernel; `ENOTTY` where there is no btrfs.
pub fn create_subvolume(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    with_name(folder, SUBVOLUME_CREATE, name)
}

/// Makes a snapshot of a subvolume in a folder. It is on the disk, with all that was written to the source,
/// when the call returns.
///
/// # Errors
/// Those of the kernel.
pub fn snapshot_subvolume(
    source: BorrowedFd<'_>,
    folder: BorrowedFd<'_>,
    name: &CStr,
    read_only: bool,
) -> io::Result<()> {
    let mut arguments = SnapshotArguments {
        fd: source.as_raw_fd().into(),
        transaction: 0,
        flags: if read_only { SUBVOLUME_READ_ONLY } else { 0 },
        unused: [0; 4],
        name: [0; NAME],
    };
    put(name, &mut arguments.name)?;
    // SAFETY: the arguments outlive the call, and have the size that its number says.
    checked(unsafe { libc::ioctl(folder.as_raw_fd(), SNAPSHOT_CREATE as _, &raw mut arguments) }.into())
        .map(drop)
}

/// Removes a subvolume in a folder with all of its files.
///
/// # Errors
/// Those of the kernel; `ENOTEMPTY` when there are other subvolumes in it.
pub fn destroy_subvolume(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    with_name(folder, SNAPSHOT_DESTROY, name)
}

/// The number of the subvolume that an open file is in.
///
/// # Errors
/// Those of the kernel; `ENOTTY` where there is no btrfs.
pub fn subvolume_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut lookup = Lookup { tree: 0, object: TOP, name: [0; SIZE - 16] };
    // SAFETY: the arguments outlive the call, which writes to them no more than their size.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), INODE_LOOKUP as _, &raw mut lookup) }.into())?;
    Ok(lookup.tree)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn arguments_have_the_kernels_size_and_other_file_systems_say_so() {
        let sizes = [size_of::<Arguments>(), size_of::<SnapshotArguments>(), size_of::<Lookup>()];
        assert_eq!(sizes, [SIZE; 3]);
        let proc = std::fs::File::open("/proc").unwrap();
        let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(code(subvolume_id(proc.as_fd()).map(drop)), Some(libc::ENOTTY));
        assert_eq!(code(create_subvolume(proc.as_fd(), c"x")), Some(libc::ENOTTY));
        let long = std::ffi::CString::new("x".repeat(NAME)).unwrap();
        assert_eq!(code(create_subvolume(proc.as_fd(), &long)), Some(libc::ENAMETOOLONG));
    }
}
