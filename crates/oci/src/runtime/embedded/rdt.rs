//! Groups of the processor's resources (resctrl): shares of caches and of memory bandwidth.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Failure;
use super::config::{Config, IntelRdt};
use super::rootfs::words;

/// Where this host has them.
fn mount_point(wanted: &IntelRdt) -> Result<PathBuf, Failure> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line =
        table.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("resctrl ")));
    let point = line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let (what, missing) = match (wanted.l3_cache_schema.is_empty(), wanted.mem_bw_schema.is_empty()) {
        (false, _) => (".l3CacheSchema", "RDT/CAT is not enabled"),
        (_, false) => (".memBwSchema", "RDT/MBA is not enabled"),
        _ => ("", "RDT is not supported or enabled"),
    };
    point.ok_or_else(|| format!("intelRdt{what} is specified in config, but Intel {missing}"))
}

/// Puts a container's first process, and with it all that come from it, into its group. Answers the group if it goes
/// with the container.
pub(super) fn join(config: &Config, id: &str, pid: i32) -> Result<Option<PathBuf>, Failure> {
    config
        .linux
        .intel_rdt
        .as_ref()
        .map_or(Ok(None), |wanted| join_below(&mount_point(wanted)?, wanted, id, pid))
}

fn join_below(top: &Path, wanted: &IntelRdt, id: &str, pid: i32) -> Result<Option<PathBuf>, Failure> {
    let name = if wanted.clos_id.is_empty() { id } else { &wanted.clos_id };
    if name.contains('/') || matches!(name, "." | "..") {
        return Err(format!("invalid intelRdt.ClosID {name:?}"));
    }
    let folder = top.join(name);
    let failed = |error: std::io::Error| format!("intelRdt: {}: {}", folder.display(), words(error));
    let lines = wanted.lines();
    let is_new = match fs::create_dir(&folder) {
        // A group of that name must be there, when nothing says how to make it.
        Ok(()) if !wanted.clos_id.is_empty() && lines.is_empty() => {
            fs::remove_dir(&folder).ok();
            return Err(format!(
                "clos_id {name:?} is given, but there is no such group and no schema for a new one"
            ));
        }
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
    };
    let own = wanted.clos_id.is_empty().then(|| folder.clone());
    let apply = || -> Result<(), Failure> {
        if is_new || own.is_some() {
            for line in &lines {
                fs::write(folder.join("schemata"), format!("{line}\n"))
                    .map_err(|error| format!("intelRdt: schemata {line:?}: {}", words(error)))?;
            }
        } else {
            let has = fs::read_to_string(folder.join("schemata")).map_err(failed)?;
            if let Some(missing) = lines.iter().find(|line| !has.lines().any(|one| one.trim() == line.trim()))
            {
                return Err(format!(
                    "intelRdt: the group {name:?} exists with another schema than {missing:?}"
                ));
            }
        }
        if wanted.enable_monitoring {
            let monitored = folder.join("mon_groups").join(id);
            fs::create_dir(&monitored).or_else(|error| match error.kind() {
                ErrorKind::AlreadyExists => Ok(()),
                _ => Err(failed(error)),
            })?;
            fs::write(monitored.join("tasks"), pid.to_string()).map_err(failed)?;
        }
        fs::write(folder.join("tasks"), pid.to_string()).map_err(failed)
    };
    if let Err(failure) = apply() {
        if is_new {
            fs::remove_dir(&folder).ok();
        }
        return Err(failure);
    }
    Ok(own)
}

/// Removes a group. Its processes go to that of all others.
pub(super) fn remove(group: &Path) {
    fs::remove_dir(group).ok();
}

impl IntelRdt {
    /// What `schemata` is to say.
    fn lines(&self) -> Vec<&str> {
        let texts = [&self.l3_cache_schema, &self.mem_bw_schema].into_iter().chain(&self.schemata);
        texts.flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: serde_json::Value) -> IntelRdt {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn groups_are_made_joined_and_compared() {
        let top = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(top.path().join(path)).unwrap();
        let own = wanted(serde_json::json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"}));
        let group = join_below(top.path(), &own, "me", 42).unwrap();
        assert_eq!(group, Some(top.path().join("me")));
        // A file of this kind keeps only the last line that is written to it here.
        assert_eq!((read("me/schemata"), read("me/tasks")), ("MB:0=20\n".into(), "42".into()));

        let shared = wanted(serde_json::json!({"closID": "gold", "schemata": ["L3:0=ff"]}));
        assert_eq!(join_below(top.path(), &shared, "me", 1).unwrap(), None);
        assert_eq!(join_below(top.path(), &shared, "you", 2).unwrap(), None);
        assert_eq!(read("gold/tasks"), "2");
        let other = wanted(serde_json::json!({"closID": "gold", "schemata": ["L3:0=1"]}));
        assert!(join_below(top.path(), &other, "me", 3).unwrap_err().contains("another schema"));
        let missing = wanted(serde_json::json!({"closID": "silver"}));
        assert!(join_below(top.path(), &missing, "me", 3).unwrap_err().contains("no such group"));
        assert!(!top.path().join("silver").exists());
        assert!(join_below(top.path(), &wanted(serde_json::json!({"closID": "../x"})), "me", 3).is_err());
    }
}
