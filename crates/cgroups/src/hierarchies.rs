//! The hierarchies that this host has mounted.

use std::io;
use std::path::{Component, Path, PathBuf};

use corten_types::{Error, Result};

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, or `name=…`; nothing for v2.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which part of it is mounted there.
    root: PathBuf,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Those of v1.
    pub v1: Vec<Hierarchy>,
    /// That of v2.
    pub v2: Option<Hierarchy>,
}

impl Hierarchies {
    /// Those that this process sees.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn here() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads `/proc/<pid>/mountinfo`. Of several mounts of one hierarchy the first counts.
    pub(crate) fn parse(mounts: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount_point)) = (left.next(), left.next()) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            let mut hierarchy = Hierarchy {
                controllers: Vec::new(),
                mount_point: unescaped(mount_point),
                root: unescaped(root),
            };
            match kind {
                "cgroup2" if found.v2.is_none() => found.v2 = Some(hierarchy),
                "cgroup" => {
                    hierarchy.controllers = controllers(options);
                    let known = found.v1.iter().any(|other| other.controllers == hierarchy.controllers);
                    if !known && !hierarchy.controllers.is_empty() {
                        found.v1.push(hierarchy);
                    }
                }
                _ => {}
            }
        }
        found
    }
}

impl Hierarchy {
    /// The folder of a cgroup that the kernel names by its path.
    pub(crate) fn folder(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.root).unwrap_or(path);
        self.mount_point.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The folder of a cgroup that a specification names; relative paths are below `own`.
    ///
    /// # Errors
    /// InvalidArgument for paths that lead out.
    pub(crate) fn wanted(&self, path: &Path, own: Option<&Path>) -> Result<PathBuf> {
        let mut folder = match own {
            Some(own) if path.is_relative() => self.folder(own),
            _ => self.mount_point.clone(),
        };
        for part in path.components() {
            match part {
                Component::Normal(name) => folder.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => {
                    return Err(Error::invalid_argument(format!(
                        "cgroups path {} leads out",
                        path.display()
                    )));
                }
            }
        }
        Ok(folder)
    }
}

/// The controllers among a mount's options: all that are not options of the file system itself.
fn controllers(options: &str) -> Vec<String> {
    const OTHER: [&str; 7] = ["rw", "ro", "xattr", "clone_children", "noprefix", "none", "all"];
    let options = options.split(',').filter(|option| !OTHER.contains(option));
    options.filter(|option| !option.starts_with("release_agent=")).map(str::to_owned).collect()
}

/// Spaces and the like are octal in mount tables.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (mut out, bytes) = (Vec::new(), text.as_bytes());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:23 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
28 25 0:24 /docker/a\\040b /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory
29 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
30 25 0:23 / /elsewhere rw - cgroup systemd rw,xattr,name=systemd";

    #[test]
    fn hierarchies_are_told_apart() {
        let found = Hierarchies::parse(HYBRID);
        let names: Vec<_> = found.v1.iter().map(|one| one.controllers.join("+")).collect();
        assert_eq!(names, ["cpu+cpuacct", "name=systemd", "memory"]);
        assert_eq!(found.v2.unwrap().mount_point, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_mounted_part_of_a_hierarchy_is_taken_into_account() {
        let memory = Hierarchies::parse(HYBRID).v1.remove(2);
        let folder = memory.folder(Path::new("/docker/a b/x"));
        assert_eq!(folder, Path::new("/sys/fs/cgroup/me mory/x"));
    }

    #[test]
    fn wanted_paths_stay_inside() {
        let cpu = Hierarchies::parse(HYBRID).v1.remove(0);
        let at = |path: &str| cpu.wanted(Path::new(path), Some(Path::new("/own")));
        assert_eq!(at("/a/./b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(at("a").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/own/a"));
        assert!(at("/a/../../b").is_err());
    }
}
