//! Namespaces: new ones, and those that are joined.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Failure;
use super::config::{Config, IdMapping, Linux};
use super::process::Proc;
use super::rootfs::words;

/// Kinds by name: the specification's, the kernel's in `/proc/<pid>/ns`, and `CLONE_` flag. In the order in
/// which they are joined: a user namespace gives the right to join others.
const KINDS: [(&str, &str, u64); 8] = [
    ("user", "user", 0x1000_0000),
    ("pid", "pid", 0x2000_0000),
    ("network", "net", 0x4000_0000),
    ("ipc", "ipc", 0x0800_0000),
    ("uts", "uts", 0x0400_0000),
    ("time", "time", 0x80),
    ("cgroup", "cgroup", 0x0200_0000),
    ("mount", "mnt", 0x0002_0000),
];

pub(super) const NEW_TIME: u64 = 0x80;
pub(super) const NEW_CGROUP: u64 = 0x0200_0000;
pub(super) const NEW_USER: u64 = 0x1000_0000;
pub(super) const NEW_PID: u64 = 0x2000_0000;
pub(super) const NEW_NETWORK: u64 = 0x4000_0000;
pub(super) const NEW_MOUNT: u64 = 0x0002_0000;

/// What a container's configuration asks for.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Flags of those that are new.
    pub new: u64,
    /// Those that are joined, by flag.
    pub joined: Vec<(u64, OwnedFd)>,
}

impl Namespaces {
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let mut found = Self { new: 0, joined: Vec::new() };
        for wanted in &config.linux.namespaces {
            if !KINDS.iter().any(|(name, ..)| *name == wanted.kind) {
                return Err(format!("namespace {:?} does not exist", wanted.kind));
            }
        }
        for (name, _, flag) in KINDS {
            let Some(wanted) = config.namespace(name) else { continue };
            if wanted.path.as_os_str().is_empty() {
                found.new |= flag;
            } else {
                found.joined.push((flag, open(&wanted.path)?));
            }
        }
        Ok(found)
    }

    /// Those of a process that differ from our own; a failure when it has ended.
    pub(super) fn of(pid: i32) -> Result<Vec<(u64, OwnedFd)>, Failure> {
        let mut found = Vec::new();
        for (_, name, flag) in KINDS {
            let path = format!("/proc/{pid}/ns/{name}");
            // Not every kernel has all kinds.
            let Ok(ours) = std::fs::read_link(format!("/proc/self/ns/{name}")) else { continue };
            let theirs = std::fs::read_link(&path).map_err(|error| format!("{path}: {}", words(error)))?;
            if theirs != ours {
                found.push((flag, open(Path::new(&path))?));
            }
        }
        Ok(found)
    }
}

fn open(path: &Path) -> Result<OwnedFd, Failure> {
    let file = File::open(path);
    file.map(OwnedFd::from).map_err(|error| format!("lstat {}: {}", path.display(), words(error)))
}

/// Joins a namespace; one of processes is for children only.
pub(super) fn join(flag: u64, namespace: &OwnedFd) -> Result<(), Failure> {
    let (kind, name) = match flag {
        NEW_USER => (LinkNameSpaceType::User, "user"),
        NEW_PID => (LinkNameSpaceType::ProcessID, "pid"),
        NEW_NETWORK => (LinkNameSpaceType::Network, "network"),
        0x0800_0000 => (LinkNameSpaceType::InterProcessCommunication, "ipc"),
        0x0400_0000 => (LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
        NEW_TIME => (LinkNameSpaceType::Time, "time"),
        NEW_CGROUP => (LinkNameSpaceType::ControlGroup, "cgroup"),
        _ => (LinkNameSpaceType::Mount, "mount"),
    };
    move_into_link_name_space(namespace.as_fd(), Some(kind))
        .map_err(|error| format!("failed to join {name} namespace: {}", words(error)))
}

/// Writes the mappings of a process in a new user namespace.
pub(super) fn map_ids(proc: &Proc, pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Failure> {
    let lines = |maps: &[IdMapping]| -> String {
        maps.iter().map(|one| format!("{} {} {}\n", one.container, one.host, one.size)).collect()
    };
    proc.write(&format!("{pid}/uid_map"), &lines(uids))?;
    proc.write(&format!("{pid}/gid_map"), &lines(gids))
}

/// Puts children into a new time namespace, with its clocks set.
pub(super) fn new_time(proc: &Proc, linux: &Linux) -> Result<(), Failure> {
    corten_sys::unshare(0x80).map_err(|error| format!("unshare time namespace: {}", words(error)))?;
    let lines: String = linux
        .time_offsets
        .iter()
        .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
        .collect();
    if lines.is_empty() { Ok(()) } else { proc.write("self/timens_offsets", &lines) }
}

/// Sets kernel parameters of the namespaces that this process is in now.
pub(super) fn set_parameters(proc: &Proc, linux: &Linux) -> Result<(), Failure> {
    for (name, value) in &linux.sysctl {
        let path = parameter_path(name);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("sysctl {name:?} is no name of a kernel parameter"));
        }
        proc.write(&format!("sys/{path}"), value).map_err(|error| format!("sysctl {name}: {error}"))?;
    }
    Ok(())
}

/// As sysctl(8) reads names: the first separator decides, and the other one is a dot in a name then.
fn parameter_path(name: &str) -> String {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']).and_then(|at| name.get(at..=at)) {
        Some(".") => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters_are_found_under_both_spellings() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(parameter_path(name), path);
        }
    }
}
