//! Options in the manner of mount(8).

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options sorted by what they are.
#[derive(Debug)]
pub(crate) struct Options {
    pub flags: MountFlags,
    pub propagation: MountPropagationFlags,
    pub bind: bool,
    pub recursive: bool,
    /// For the file system.
    pub data: Vec<String>,
}

impl Options {
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            bind: false,
            recursive: false,
            data: Vec::new(),
        };
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        let (flag, set) = match option {
            "defaults" | "" | "rw" => (MountFlags::RDONLY, false),
            "ro" => (MountFlags::RDONLY, true),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "bind" => {
                self.bind = true;
                return;
            }
            "rbind" => {
                (self.bind, self.recursive) = (true, true);
                return;
            }
            other => {
                match propagation(other) {
                    Some(propagation) => self.propagation |= propagation,
                    None => self.data.push(other.to_owned()),
                }
                return;
            }
        };
        self.flags.set(flag, set);
    }
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, MountPropagationFlags::REC),
        None => (option, MountPropagationFlags::empty()),
    };
    let kind = match name {
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "private" => MountPropagationFlags::PRIVATE,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}
