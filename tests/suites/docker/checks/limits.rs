//! Limits, read back from the cgroup.

use std::path::PathBuf;

use crate::table::Check;
use corten_tests::engine::{BOX, Engine};

pub const CHECKS: &[Check] = &[
    ("--memory and --memory-reservation", memory),
    ("--cpus, --cpu-shares, --cpuset-cpus", cpu),
    ("--pids-limit", pids),
    ("update of limits", update),
    ("cgroups lie under the engine's parent", parent),
    ("memory that runs out kills, and is seen as such", out_of_memory),
    ("stats show what is used", stats),
];

/// The cgroup folder of a process for a controller: its own hierarchy, or the unified one.
fn folder(pid: &str, controller: &str) -> (PathBuf, bool) {
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &str| {
        table.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let found = fields.next()?.split(',').any(|name| name == wanted);
            found.then(|| fields.next().unwrap_or_default().trim_start_matches('/').to_owned())
        })
    };
    if let Some(path) = path(controller) {
        (PathBuf::from("/sys/fs/cgroup").join(controller).join(path), false)
    } else {
        (PathBuf::from("/sys/fs/cgroup").join(path("").unwrap()), true)
    }
}

/// The value of a file in a container's cgroup, by its names in v1 and v2.
fn value(e: &Engine, name: &str, controller: &str, v1: &str, v2: &str) -> String {
    let (folder, unified) = folder(&e.inspect(name, ".State.Pid"), controller);
    let path = folder.join(if unified { v2 } else { v1 });
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

#[track_caller]
fn start(e: &Engine, name: &str, flags: &str) {
    e.out(&format!("run -d --network none --name {name} {flags} {BOX} sleep 1000"));
}

fn memory(e: &Engine) {
    start(e, "limit-memory", "-m 64m --memory-reservation 32m");
    assert_eq!(value(e, "limit-memory", "memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(value(e, "limit-memory", "memory", "memory.soft_limit_in_bytes", "memory.low"), "33554432");
    e.remove("limit-memory");
}

fn cpu(e: &Engine) {
    start(e, "limit-cpu", "--cpus 0.5 --cpu-shares 512 --cpuset-cpus 0");
    let quota = value(e, "limit-cpu", "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["50000", "50000 100000"].contains(&quota.as_str()), "{quota}");
    let shares = value(e, "limit-cpu", "cpu", "cpu.shares", "cpu.weight");
    assert!(["512", "20"].contains(&shares.as_str()), "{shares}");
    assert_eq!(value(e, "limit-cpu", "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    e.remove("limit-cpu");
}

fn pids(e: &Engine) {
    start(e, "limit-pids", "--pids-limit 20");
    assert_eq!(value(e, "limit-pids", "pids", "pids.max", "pids.max"), "20");
    let finished = e.docker("exec limit-pids sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do sleep 5 & done'");
    assert!(finished.stderr.contains("fork"), "{finished:?}");
    e.remove("limit-pids");
}

fn update(e: &Engine) {
    start(e, "limit-update", "-m 64m --memory-swap 128m");
    e.docker("update -m 96m --memory-swap 192m --cpus 0.25 --cpu-shares 256 --pids-limit 33 limit-update")
        .ok();
    assert_eq!(value(e, "limit-update", "memory", "memory.limit_in_bytes", "memory.max"), "100663296");
    let quota = value(e, "limit-update", "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["25000", "25000 100000"].contains(&quota.as_str()), "{quota}");
    assert_eq!(value(e, "limit-update", "pids", "pids.max", "pids.max"), "33");
    assert_eq!(e.inspect("limit-update", ".HostConfig.Memory"), "100663296");
    e.docker("update --restart on-failure:3 limit-update").ok();
    assert_eq!(e.inspect("limit-update", ".HostConfig.RestartPolicy.Name"), "on-failure");
    e.remove("limit-update");
}

fn parent(e: &Engine) {
    start(e, "limit-parent", "");
    let id = e.inspect("limit-parent", ".Id");
    let (folder, _) = folder(&e.inspect("limit-parent", ".State.Pid"), "memory");
    assert!(folder.ends_with(format!("{}/{id}", e.cgroup())), "{}", folder.display());
    e.remove("limit-parent");
    assert!(!folder.exists(), "{} is left", folder.display());
}

fn out_of_memory(e: &Engine) {
    let line = format!(
        "run --name limit-oom -m 16m --memory-swap 16m {BOX} sh -c 'x=a; while true; do x=$x$x; done'"
    );
    e.docker(&line).fails(137);
    assert_eq!(e.inspect("limit-oom", ".State.OOMKilled"), "true");
    e.events("limit-oom", |told| told.contains("oom"));
    e.remove("limit-oom");
}

fn stats(e: &Engine) {
    start(e, "limit-stats", "-m 64m");
    let line = e.out("stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}} {{.CPUPerc}} {{.NetIO}} {{.BlockIO}}' limit-stats");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..2], ["limit-stats", "1"], "{line}");
    assert!(words[2] != "0B" && words[4] == "64MiB", "{line}");
    e.remove("limit-stats");
}
