//! Cgroups as a supervisor sees them: where a process is, what is in there, and figures. v1, v2 and both
//! side by side. Making and removing cgroups is the OCI runtime's.

mod figures;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use corten_types::{Error, Result};

pub use figures::metrics;

/// The cgroups of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Folder by controller; empty on a pure v2 host.
    v1: BTreeMap<String, PathBuf>,
    /// Folder in the unified hierarchy.
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// Where a process is.
    ///
    /// # Errors
    /// NotFound when it is gone.
    pub fn of(pid: i32) -> Result<Self> {
        let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Self::default();
        for line in table.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                found.v2 = mount_point(&mounts, "cgroup2", "").map(|point| point.join(path));
            }
            for controller in controllers.split(',').filter(|name| !name.is_empty() && !name.contains('=')) {
                if let Some(point) = mount_point(&mounts, "cgroup", controller) {
                    found.v1.insert(controller.to_owned(), point.join(path));
                }
            }
        }
        Ok(found)
    }

    /// Whether limits and figures are those of v2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// The folder of a v1 controller.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&Path> {
        self.v1.get(name).map(PathBuf::as_path)
    }

    /// The folder of the unified hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// The folder that lists all processes.
    fn members(&self) -> Option<&Path> {
        if self.is_unified() {
            return self.unified();
        }
        ["pids", "memory", "freezer", "cpu"].iter().find_map(|name| self.controller(name))
    }

    /// Processes in the cgroup and below it.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let folder = self.members().ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        let mut pids = Vec::new();
        let mut pending = vec![folder.to_owned()];
        while let Some(folder) = pending.pop() {
            let list = std::fs::read_to_string(folder.join("cgroup.procs"))?;
            pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
            let below = std::fs::read_dir(&folder)?.flatten();
            pending.extend(
                below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()),
            );
        }
        Ok(pids)
    }

    /// Whether this is nobody's own cgroup but the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.members().is_none_or(|folder| !folder.join("cgroup.procs").exists() || is_mount_point(folder))
    }
}

fn is_mount_point(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == folder))
}

/// Where a hierarchy is mounted.
fn mount_point(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let of_kind = right.next()? == kind;
        let options = right.nth(1)?;
        let fits =
            of_kind && (controller.is_empty() || options.split(',').any(|option| option == controller));
        let point = left.split(' ').nth(4)?;
        fits.then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroups_of_this_process_are_found() {
        let own = Cgroups::of(std::process::id() as i32).unwrap();
        assert!(own.processes().unwrap().contains(&(std::process::id() as i32)));
        assert!(Cgroups::of(-1).is_err());
    }
}
