//! Options of mounts, by the names that fstab(5) and the OCI runtime specification give them.

use super::Failure;

/// Attributes of a mount, as mount_setattr(2) numbers them.
pub(super) mod attribute {
    pub const READ_ONLY: u64 = 0x1;
    pub const NO_SETUID: u64 = 0x2;
    pub const NO_DEVICES: u64 = 0x4;
    pub const NO_EXECUTION: u64 = 0x8;
    pub const ACCESS_TIMES: u64 = 0x70;
    pub const NO_ACCESS_TIMES: u64 = 0x10;
    pub const STRICT_ACCESS_TIMES: u64 = 0x20;
    pub const NO_FOLDER_ACCESS_TIMES: u64 = 0x80;
    pub const NO_LINKS: u64 = 0x20_0000;
}

/// How mounts are passed on, as mount(2) numbers it.
pub(super) mod propagation {
    pub const UNBINDABLE: u64 = 1 << 17;
    pub const PRIVATE: u64 = 1 << 18;
    pub const SLAVE: u64 = 1 << 19;
    pub const SHARED: u64 = 1 << 20;
}

/// Those that are understood here; all others are the file system's.
#[rustfmt::skip]
pub(super) const NAMES: &[&str] = &[
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "iversion",
    "lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime",
    "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev",
    "rdiratime", "relatime", "remount", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec",
    "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw",
    "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw", "shared", "silent",
    "slave", "strictatime", "suid", "symfollow", "sync", "tmpcopyup", "unbindable",
];

/// All options of a mount, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub bind: bool,
    pub recursive: bool,
    pub remount: bool,
    /// Attributes of the mount itself.
    pub set: u64,
    pub clear: u64,
    /// Attributes of it and all below it.
    pub set_all: u64,
    pub clear_all: u64,
    /// 0 is none; and whether it is for all below too.
    pub propagation: u64,
    pub propagation_recursive: bool,
    pub id_mapped: bool,
    pub id_mapped_recursive: bool,
    /// What was there is copied onto it.
    pub copy_up: bool,
    /// The file system's own.
    pub data: Vec<String>,
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Result<Self, Failure> {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), Failure> {
        match option {
            "defaults" | "" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" => self.remount = true,
            "idmap" => self.id_mapped = true,
            "ridmap" => (self.id_mapped, self.id_mapped_recursive) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            // Of the file system as a whole.
            "sync" | "dirsync" | "lazytime" | "mand" => self.data.push(option.to_owned()),
            "async" | "nolazytime" | "nomand" | "loud" | "silent" | "iversion" | "noiversion" => {}
            _ => {
                if let Some((value, recursive)) = passed_on(option) {
                    (self.propagation, self.propagation_recursive) = (value, recursive);
                } else if let Some((set, clear)) = changes(option) {
                    self.clear = (self.clear & !set) | clear;
                    self.set = (self.set & !clear) | set;
                } else if let Some((set, clear)) = option.strip_prefix('r').and_then(changes) {
                    self.clear_all = (self.clear_all & !set) | clear;
                    self.set_all = (self.set_all & !clear) | set;
                } else {
                    self.data.push(option.to_owned());
                }
            }
        }
        Ok(())
    }

    /// What a new mount of a file system gets.
    pub(super) fn attributes(&self) -> u64 {
        self.set | self.set_all
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.set & attribute::READ_ONLY != 0
    }
}

/// A way of passing mounts on, and whether for all below.
pub(super) fn passed_on(name: &str) -> Option<(u64, bool)> {
    let of = |name: &str| match name {
        "private" => Some(propagation::PRIVATE),
        "shared" => Some(propagation::SHARED),
        "slave" => Some(propagation::SLAVE),
        "unbindable" => Some(propagation::UNBINDABLE),
        _ => None,
    };
    of(name).map(|one| (one, false)).or_else(|| name.strip_prefix('r').and_then(of).map(|one| (one, true)))
}

/// Attributes to set and to clear.
fn changes(name: &str) -> Option<(u64, u64)> {
    use attribute::{
        ACCESS_TIMES, NO_ACCESS_TIMES, NO_DEVICES, NO_EXECUTION, NO_FOLDER_ACCESS_TIMES, NO_LINKS, NO_SETUID,
        READ_ONLY, STRICT_ACCESS_TIMES,
    };
    Some(match name {
        "ro" => (READ_ONLY, 0),
        "rw" => (0, READ_ONLY),
        "nosuid" => (NO_SETUID, 0),
        "suid" => (0, NO_SETUID),
        "nodev" => (NO_DEVICES, 0),
        "dev" => (0, NO_DEVICES),
        "noexec" => (NO_EXECUTION, 0),
        "exec" => (0, NO_EXECUTION),
        "noatime" => (NO_ACCESS_TIMES, ACCESS_TIMES),
        "atime" | "relatime" | "norelatime" | "nostrictatime" => (0, ACCESS_TIMES),
        "strictatime" => (STRICT_ACCESS_TIMES, ACCESS_TIMES),
        "nodiratime" => (NO_FOLDER_ACCESS_TIMES, 0),
        "diratime" => (0, NO_FOLDER_ACCESS_TIMES),
        "nosymfollow" => (NO_LINKS, 0),
        "symfollow" => (0, NO_LINKS),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&one| one.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_are_sorted_and_the_last_word_counts() {
        let parsed =
            parse(&["rbind", "ro", "nosuid", "rw", "rslave", "mode=755", "rro", "noatime", "strictatime"]);
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(parsed.set, attribute::NO_SETUID | attribute::STRICT_ACCESS_TIMES);
        assert_eq!(parsed.clear & attribute::READ_ONLY, attribute::READ_ONLY);
        assert_eq!(parsed.set_all, attribute::READ_ONLY);
        assert_eq!((parsed.propagation, parsed.propagation_recursive), (propagation::SLAVE, true));
        assert_eq!(parsed.data, ["mode=755"]);
        assert!(parse(&["tmpcopyup"]).copy_up);
    }
}
