//! Properties of the calling task that are inherited by programs.

use std::ffi::CString;
use std::io;

use crate::checked;

/// Joins, or makes, the session keyring of a name.
///
/// # Errors
/// Those of keyctl(2); ENOSYS where the kernel has no keyrings.
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = CString::new(name)?;
    // SAFETY: the name outlives the call.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// Leaves namespaces (and other shared things) behind, by `CLONE_` flags.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: with one thread nobody else uses what is left.
    checked(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// Sets the NIS domain name.
///
/// # Errors
/// Those of setdomainname(2).
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the length is that of the text.
    checked(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// Replaces the supplementary groups.
///
/// # Errors
/// Those of setgroups(2).
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list outlives the call and its length is told.
    checked(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }.into())?;
    Ok(())
}

/// Sets the execution domain.
///
/// # Errors
/// Those of personality(2).
pub fn set_personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: has no preconditions.
    checked(unsafe { libc::personality(domain) }.into())?;
    Ok(())
}

/// Sets the priority of I/O; class 1 is real time, 2 best effort, 3 idle.
///
/// # Errors
/// Those of ioprio_set(2).
pub fn set_io_priority(class: i32, priority: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: has no preconditions.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class << 13 | priority) })?;
    Ok(())
}

/// How a task is scheduled; see sched_setattr(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduling {
    /// `SCHED_` number.
    pub policy: u32,
    /// `SCHED_FLAG_` bits.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for deadlines.
    pub runtime: u64,
    /// Nanoseconds, for deadlines.
    pub deadline: u64,
    /// Nanoseconds, for deadlines.
    pub period: u64,
}

/// Changes how this task is scheduled.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn set_scheduling(how: Scheduling) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let Scheduling { policy, flags, nice, priority, runtime, deadline, period } = how;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure outlives the call and tells its size.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}
