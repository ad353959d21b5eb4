//! The usual AppArmor profile: made by the system's own tool.

use std::io::Write;
use std::process::{Command, Stdio};

use corten_types::{Error, Result, ResultExt};

const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Loads the usual profile under a name, unless one of this name is loaded.
///
/// # Errors
/// On kernels without AppArmor, and what `apparmor_parser` says.
pub fn load(name: &str) -> Result<()> {
    let loaded = std::fs::read_to_string(LOADED).with_context(|| format!("open {LOADED}"))?;
    if loaded.lines().any(|line| line.split(" (").next() == Some(name)) {
        return Ok(());
    }
    // The name becomes part of the profile's text.
    if name.is_empty() || !name.chars().all(|one| one.is_ascii_alphanumeric() || "._-".contains(one)) {
        return Err(Error::invalid_argument(format!("AppArmor profile name {name:?}")));
    }
    let mut parser = Command::new("apparmor_parser")
        .arg("-Kr")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("apparmor_parser")?;
    if let Some(mut input) = parser.stdin.take() {
        input.write_all(profile(name).as_bytes()).context("apparmor_parser")?;
    }
    let done = parser.wait_with_output().context("apparmor_parser")?;
    match done.status.success() {
        true => Ok(()),
        false => {
            Err(Error::unknown(format!("apparmor_parser: {}", String::from_utf8_lossy(&done.stderr).trim())))
        }
    }
}

/// What a container may (spec 04 §6.7): its own files and network, signals among its own, nothing of the kernel's.
fn profile(name: &str) -> String {
    format!(
        "#include <tunables/global>\n\
         profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         \x20 #include <abstractions/base>\n\
         \x20 network,\n  capability,\n  file,\n  umount,\n\
         \x20 signal (receive) peer=unconfined,\n\
         \x20 signal (receive) peer=runc,\n\
         \x20 signal (receive) peer=crun,\n\
         \x20 signal (send, receive) peer={name},\n\
         \x20 deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,\n\
         \x20 deny @{{PROC}}/sys/[^k]** w,\n\
         \x20 deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,\n\
         \x20 deny @{{PROC}}/sysrq-trigger rwklx,\n\
         \x20 deny @{{PROC}}/kcore rwklx,\n\
         \x20 deny mount,\n\
         \x20 deny /sys/[^f]*/** wklx,\n\
         \x20 deny /sys/f[^s]*/** wklx,\n\
         \x20 deny /sys/fs/[^c]*/** wklx,\n\
         \x20 deny /sys/fs/c[^g]*/** wklx,\n\
         \x20 deny /sys/fs/cg[^r]*/** wklx,\n\
         \x20 deny /sys/firmware/** rwklx,\n\
         \x20 deny /sys/devices/virtual/powercap/** rwklx,\n\
         \x20 deny /sys/kernel/security/** rwklx,\n\
         \x20 ptrace (trace, tracedby, read, readby) peer={name},\n\
         }}\n"
    )
}
