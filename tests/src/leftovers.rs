//! Finds what a node's processes left on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Pids of processes that belong to the node in `folder` (its daemon, its shims: their command line
/// names it), and of all their descendants.
pub fn processes(folder: &Path) -> BTreeSet<i32> {
    let folder = folder.to_string_lossy().into_owned();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut pending = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name may hold anything; the parent's pid is the second field after its last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if let Some(parent) = fields.get(1).and_then(|text| text.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let zombie = fields.first() == Some(&"Z");
        if !zombie && pid != std::process::id() as i32 && String::from_utf8_lossy(&command).contains(&folder)
        {
            pending.push(pid);
        }
    }
    let mut found = BTreeSet::new();
    while let Some(pid) = pending.pop() {
        if pid != std::process::id() as i32 && found.insert(pid) {
            pending.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Cgroup folders called after the node's namespace, in every hierarchy, deepest first.
pub fn cgroups(namespace: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let top = Path::new(point).join(namespace);
        if top.is_dir() {
            descend(&top, &mut found);
        }
    }
    found.reverse();
    found
}

fn descend(folder: &Path, found: &mut Vec<PathBuf>) {
    found.push(folder.to_owned());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            descend(&entry.path(), found);
        }
    }
}

/// Ends all processes of the node in `folder` and those in the cgroups of its namespace, and removes these.
pub fn clear(folder: &Path, namespace: &str) {
    let kill = |pid: i32| Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    // Shims first, so that nobody adopts or restarts what they supervise.
    for _ in 0..3 {
        for pid in processes(folder) {
            kill(pid);
        }
        std::thread::sleep(Duration::from_millis(10));
        if processes(folder).is_empty() {
            break;
        }
    }
    for cgroup in cgroups(namespace) {
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            kill(pid);
        }
        crate::leftovers_remove(&cgroup);
    }
}
