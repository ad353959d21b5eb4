//! Filters of devices for v2 cgroups: small programs of the kernel's BPF machine.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::checked;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads a filter; `code` is its instructions as the kernel encodes them.
///
/// # Errors
/// Those of bpf(2).
pub fn load_device_filter(code: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure and what it points to outlive the call, and sizes are told.
    let fd =
        checked(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Lets a filter decide about the devices of a cgroup, beside those that do already.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_device_filter(filter: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        filter: u32,
        kind: u32,
        flags: u32,
    }
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        filter: filter.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure outlives the call and its size is told.
    checked(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    })?;
    Ok(())
}
