//! Cgroups that systemd makes: a real one is the first process of a machine that is only namespaces, and our runtime and
//! runc ask it for scopes.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use corten_tests::{Finished, Scratch, command, eventually, leftovers};
use serde_json::{Value, json};

use super::Lab;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs in new namespaces: `$1` is the cgroup to be the machine's root, `$2` what is to be seen of cgroups.
const MACHINE: &str = r#"
mount --make-rprivate /
mounts=$(grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts)
echo "$mounts" | while read -r _ at _ _; do
    if [ "$at" = /sys/fs/cgroup ]; then
        for one in $(cat "$at/cgroup.controllers"); do echo "+$one" >"$at/cgroup.subtree_control" || true; done
    fi
    mkdir -p "$at/$1"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$at/$file" ] || cat "$at/$file" >"$at/$1/$file"
    done
    echo $$ >"$at/$1/cgroup.procs"
done
export mounts
exec unshare --cgroup sh -ec '
umount -Rl /sys/fs/cgroup
if [ "$1" = unified ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    echo "$mounts" | while read -r _ at kind options _; do
        at=/sys/fs/cgroup/${at##*/}
        mkdir "$at" && mount -t "$kind" -o "$options" "$kind" "$at"
    done
fi
mount -t tmpfs tmpfs /run
mount --bind -o ro /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys
mkdir -p /run/systemd/system
printf "[Unit]\nDefaultDependencies=no\n" >/run/systemd/system/alone.target
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/systemd/system \
    /lib/systemd/systemd --system --unit=alone.target --log-target=null' sh "$2"
"#;

/// A running systemd.
struct Systemd {
    machine: Child,
    pid: i32,
    scratch: Scratch,
    cgroup: String,
}

impl Systemd {
    /// One that sees cgroups of v2 alone, or those of v1 too.
    fn start(seen: &str) -> Self {
        let scratch = Scratch::new();
        let cgroup = scratch.path().file_name().unwrap().to_string_lossy().into_owned();
        let namespaces =
            ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--mount-proc", "--kill-child"];
        let machine = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-ec", MACHINE, "sh", &cgroup, seen])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", machine.id());
        let child = || std::fs::read_to_string(&children).ok()?.trim().parse().ok();
        let pid = eventually("there is a first process", PATIENCE, child);
        let this = Self { machine, pid, scratch, cgroup };
        eventually("systemd serves", PATIENCE, || {
            this.sh("systemctl is-active alone.target").stdout.starts_with("active").then_some(())
        });
        this
    }

    /// A script in the machine.
    fn sh(&self, script: &str) -> Finished {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.pid.to_string()).args(["-m", "-p", "-C", "sh", "-c", script]);
        command::run(command)
    }

    /// A runtime that works in the machine, and asks systemd for cgroups.
    fn around(&self, mut lab: Lab) -> Lab {
        let script = lab.scratch.join("in-machine");
        let text = format!(
            "#!/bin/sh\nexec nsenter -t {} -m -p -C sh -c 'cd \"$0\" && exec \"$@\"' \"$PWD\" {} --systemd-cgroup \"$@\"\n",
            self.pid,
            lab.runtime.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        lab.runtime = script;
        lab
    }

    /// What systemd knows of a unit, without what runc allows as well.
    fn shown(&self, unit: &str, properties: &str) -> Vec<String> {
        let shown = self.sh(&format!("systemctl show {unit} -p {properties}")).ok();
        let mut shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        shown.retain(|line| line != "DeviceAllow=/dev/char/10:200 rwm");
        shown.sort();
        shown
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.machine.kill().ok();
        self.machine.wait().ok();
        leftovers::clear(self.scratch.path(), &self.cgroup);
    }
}

const LIMITS: &str =
    "MemoryMax,MemoryLow,MemoryLimit,CPUShares,CPUWeight,CPUQuotaPerSecUSec,CPUQuotaPeriodUSec,TasksMax";
const OTHERS: &str = "Slice,Delegate,MemoryAccounting,CPUAccounting,TasksAccounting,DefaultDependencies,ActiveState,\
    CollectMode,TimeoutStopUSec,Requires";

/// A container's life in a scope; what is seen of it from all sides.
fn life(systemd: &Systemd, lab: Lab, limits: &Value, files: &str, devices: bool) -> Vec<String> {
    let lab = systemd.around(lab);
    let id = lab.id();
    let unit = format!("t-{id}.scope");
    lab.configure(
        &json!({
            "annotations": {
                "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
                "org.systemd.property.CollectMode": "'inactive-or-failed'",
            },
            "linux": {"cgroupsPath": format!("corten-test.slice:t:{id}"), "resources": limits},
        }),
        "sleep 1000 & wait",
    );
    let mut seen = Vec::new();
    let quiet = |args: &[&str]| {
        let mut command = lab.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        format!("{}: {:?}", args[0], command.status().unwrap().code())
    };
    let status = || {
        let state: Value = serde_json::from_str(&lab.call(&["state", &id]).stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_owned()
    };
    let files = files.replace("UNIT", &format!("corten.slice/corten-test.slice/{unit}"));
    let cgroup = || systemd.sh(&format!("cd /sys/fs/cgroup; for f in {files}; do cat $f; done")).stdout;
    seen.push(quiet(&["run", "--detach", &id]));
    seen.extend(systemd.shown(
        &unit,
        &format!("{LIMITS},{OTHERS}{}", if devices { ",DevicePolicy,DeviceAllow" } else { "" }),
    ));
    seen.push(cgroup());
    seen.push(lab.call(&["exec", &id, "cat", "/proc/self/cgroup"]).stdout);
    seen.push(quiet(&["pause", &id]) + &status());
    seen.push(quiet(&["resume", &id]) + &status());
    if limits.get("memory").is_some() {
        let changed = ["update", "--memory", "33554432", "--cpu-quota", "20000", "--pids-limit", "20", &id];
        seen.push(quiet(&changed));
        seen.extend(systemd.shown(&unit, LIMITS));
        seen.push(cgroup());
    }
    seen.push(quiet(&["kill", &id, "KILL"]));
    eventually("it ends", PATIENCE, || (status() == "stopped").then_some(()));
    seen.push(quiet(&["delete", &id]) + &status());
    eventually("systemd forgets it", PATIENCE, || {
        systemd.shown(&unit, "LoadState").contains(&"LoadState=not-found".to_owned()).then_some(())
    });
    eventually("no cgroup is left", PATIENCE, || {
        leftovers::cgroups(&systemd.cgroup).iter().all(|path| !path.ends_with(&unit)).then_some(())
    });
    seen.into_iter().map(|line| line.replace(&id, "ID")).collect()
}

fn compare(systemd: &Systemd, limits: &Value, files: &str, devices: bool) -> Vec<String> {
    let ours = life(systemd, Lab::ours(), limits, files, devices);
    let theirs = life(systemd, Lab::runc(), limits, files, devices);
    assert_eq!(ours, theirs);
    assert!(
        ours.contains(&"run: Some(0)".to_owned()) && ours.contains(&"TimeoutStopUSec=7s".to_owned()),
        "{ours:?}"
    );
    ours
}

fn limits() -> Value {
    json!({
        "devices": [{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}],
        "memory": {"limit": 67_108_864}, "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
    })
}

#[test]
fn scopes_of_systemd_are_those_of_runc_where_there_is_v1() {
    if !std::fs::read_to_string("/proc/self/cgroup").unwrap().contains("memory") {
        println!("this host has no cgroups of v1");
        return;
    }
    let systemd = Systemd::start("all");
    let files = "memory/UNIT/memory.limit_in_bytes cpu/UNIT/cpu.shares cpu/UNIT/cpu.cfs_quota_us pids/UNIT/pids.max \
        cpuset/UNIT/cpuset.cpus";
    let seen = compare(&systemd, &limits(), files, true);
    assert!(seen.iter().any(|one| one.starts_with("67108864\n512\n50000\n50\n0\n")), "{seen:?}");
    assert!(seen.iter().any(|one| one.starts_with("33554432\n512\n20000\n20\n0\n")), "{seen:?}");
}

#[test]
fn scopes_of_systemd_are_those_of_runc_where_there_is_v2_alone() {
    let systemd = Systemd::start("unified");
    // Controllers that the host has bound to v1 are not among it.
    let controllers = systemd.sh("cat /sys/fs/cgroup/cgroup.controllers").ok();
    let has_all = ["cpu", "cpuset", "memory", "pids"]
        .iter()
        .all(|one| controllers.split_whitespace().any(|it| it == *one));
    let (limits, files) = if has_all {
        (
            limits(),
            "UNIT/memory.max UNIT/cpu.weight UNIT/cpu.max UNIT/pids.max UNIT/cpuset.cpus UNIT/cgroup.freeze",
        )
    } else {
        (json!({"devices": limits()["devices"]}), "UNIT/cgroup.freeze")
    };
    compare(&systemd, &limits, files, false);
}
