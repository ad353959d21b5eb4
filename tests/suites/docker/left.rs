//! What is left when everything has been removed by the engine's own means.

use std::collections::BTreeSet;
use std::path::Path;

use corten_tests::{command, leftovers};

use corten_tests::engine::{Engine, PATIENCE};

/// Removes everything, then looks for what stays: records of the daemon, processes, mounts, cgroups, files.
///
/// # Panics
/// When something stays.
pub fn nothing_left(engine: &Engine) {
    let list = |line: &str| engine.out(line).split_whitespace().collect::<Vec<_>>().join(" ");
    let remove = |what: &str, ids: &str| {
        if !ids.is_empty() {
            engine.docker(&format!("{what} {ids}")).ok();
        }
    };
    remove("rm -f -v", &list("ps -aq"));
    engine.docker("system prune -a -f").ok();
    engine.docker("builder prune -a -f").ok();
    remove("volume rm", &list("volume ls -q"));
    remove("rmi -f", &list("images -q --no-trunc"));
    let late = std::time::Instant::now() + PATIENCE;
    let mut found = left(engine);
    while !found.is_empty() && std::time::Instant::now() < late {
        std::thread::sleep(std::time::Duration::from_millis(100));
        found = left(engine);
    }
    let lines: Vec<String> = found.into_iter().collect();
    assert!(lines.is_empty(), "left behind:\n{}\n{}", lines.join("\n"), said_of(engine, &lines));
}

/// What the engine and the daemon have logged about the things of these names, which are parts of paths, and beside it.
fn said_of(engine: &Engine, lines: &[String]) -> String {
    let names: BTreeSet<&str> =
        lines.iter().flat_map(|line| line.split(['/', ' '])).filter(|word| word.len() == 64).collect();
    let log = engine.log() + &engine.node.lock().unwrap().log();
    let log: Vec<&str> = log.lines().collect();
    let named = |line: &&str| names.iter().any(|name| line.contains(name));
    let said = log.windows(5).filter(|around| around.iter().any(named)).map(|around| around[2]);
    said.collect::<Vec<_>>().join("\n")
}

fn left(engine: &Engine) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let history = records(engine, &mut found);
    let own = engine.pids();
    for pid in leftovers::processes(&engine.join("")).into_iter().filter(|pid| !own.contains(pid)) {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.insert(format!("process {}", String::from_utf8_lossy(&command).replace('\0', " ")));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let home = engine.join("").display().to_string();
    // Its data folder and the namespace of its own network are mounted by the engine as long as it runs.
    let own = [engine.join("data"), engine.join("e/netns/default")].map(|path| path.display().to_string());
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    // Its graph driver forgets one now and then, over Debian's containerd too; nobody else mounts there.
    let layers = engine.join("data/overlay2").display().to_string();
    let points = points.filter(|path| path.starts_with(&home) && !own.iter().any(|own| own == path));
    let points = points.filter(|path| !path.starts_with(&layers));
    found.extend(points.map(|path| format!("mount {path}")));
    let top = engine.cgroup();
    // BuildKit's parent stays.
    let kept = [top.as_str(), "buildkit"];
    let cgroups =
        leftovers::cgroups(&top).into_iter().filter(|path| !kept.iter().any(|name| path.ends_with(name)));
    found.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
    for folder in [
        "state/io.containerd.runtime.v2.task/moby",
        "state/io.containerd.runtime.v2.task/plugins.moby",
        "root/io.containerd.runtime.v2.task/moby",
        "root/io.containerd.snapshotter.v1.overlayfs/snapshots",
        "root/io.containerd.content.v1.content/blobs/sha256",
        "root/io.containerd.content.v1.content/ingest",
        "e/runtime-runc/moby",
        "e/runtime-runc/plugins.moby",
        "e/containerd",
        "data/containers",
        "data/volumes",
    ] {
        entries(&engine.join(folder), &history, &mut found);
    }
    found
}

/// Objects of the daemon, in all namespaces but that in which BuildKit remembers its last builds; answers the
/// digests of those.
fn records(engine: &Engine, found: &mut BTreeSet<String>) -> Vec<String> {
    let node = engine.node.lock().unwrap();
    let ctr = |namespace: &str, words: &[&str]| command::run(node.ctr_command_in(namespace, words)).ok();
    for namespace in ctr("default", &["namespaces", "ls", "-q"]).split_whitespace() {
        if namespace == HISTORY {
            continue;
        }
        let list = ctr(namespace, &["tasks", "ls"]);
        found.extend(list.lines().skip(1).map(|line| format!("tasks {namespace} {line}")));
        for kind in ["containers", "images", "content", "leases"] {
            let list = ctr(namespace, &[kind, "ls", "-q"]);
            found.extend(list.lines().map(|id| format!("{kind} {namespace} {id}")));
        }
        let list = ctr(namespace, &["snapshots", "ls"]);
        found.extend(list.lines().skip(1).map(|line| format!("snapshots {namespace} {line}")));
    }
    let digests = ctr(HISTORY, &["content", "ls", "-q"]);
    digests.lines().map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect()
}

const HISTORY: &str = "moby_history";

fn entries(folder: &Path, kept: &[String], found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // The engine's own database of volumes, and the device that it makes for quotas.
        if !["metadata.db", "backingFsBlockDev"].contains(&name.as_str()) && !kept.contains(&name) {
            found.insert(format!("file {}", entry.path().display()));
        }
    }
}
