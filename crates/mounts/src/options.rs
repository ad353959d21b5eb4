//! Options in the manner of mount(8).

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options sorted by what they are.
#[derive(Debug)]
pub(crate) struct Options {
    pub flags: MountFlags,
    /// Flags that were taken away by name, such as NOSUID by `suid`.
    pub cleared: MountFlags,
    /// Each is a call of its own.
    pub propagation: Vec<MountPropagationFlags>,
    pub bind: bool,
    pub recursive: bool,
    pub remount: bool,
    /// The source is a file, and a loop device stands for it.
    pub on_loop: bool,
    /// For the file system.
    pub data: Vec<String>,
}

/// Option, flag, and whether it sets or clears it.
const FLAGS: [(&str, MountFlags, bool); 24] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("symfollow", MountFlags::NOSYMFOLLOW, false),
];

impl Options {
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            cleared: MountFlags::empty(),
            propagation: Vec::new(),
            bind: false,
            recursive: false,
            remount: false,
            on_loop: false,
            data: Vec::new(),
        };
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    /// Later options win over earlier ones.
    fn add(&mut self, option: &str) {
        if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            self.flags.set(*flag, *set);
            self.cleared.set(*flag, !*set);
            return;
        }
        match option {
            "" | "defaults" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" => self.remount = true,
            "loop" => self.on_loop = true,
            other => match propagation(other) {
                Some(propagation) => self.propagation.push(propagation),
                None => self.data.push(other.to_owned()),
            },
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart_and_the_last_word_counts() {
        let words = "defaults,loop,rbind,ro,nosuid,suid,nodev,rslave,private,lowerdir=/a:/b,remount,ro,rw";
        let parsed = Options::parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert!(parsed.bind && parsed.recursive && parsed.remount && parsed.on_loop);
        assert_eq!(parsed.flags, MountFlags::NODEV);
        assert_eq!(parsed.cleared, MountFlags::NOSUID | MountFlags::RDONLY);
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        assert_eq!(parsed.propagation, [downstream, MountPropagationFlags::PRIVATE]);
        assert_eq!(parsed.data, ["lowerdir=/a:/b"]);
        // Not every word with an r in front is a recursive one.
        assert_eq!(Options::parse(&["rbin".into(), "redirect_dir=on".into()]).data.len(), 2);
    }
}
