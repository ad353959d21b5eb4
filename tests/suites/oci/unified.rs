//! Hosts that have cgroups of v2 alone. Such a one is played here by what each command sees; controllers, which the real
//! host may have elsewhere, are not among it.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use corten_tests::{eventually, leftovers};
use serde_json::{Value, json};

use super::Lab;

fn unified(mut lab: Lab) -> Lab {
    let script = lab.scratch.join("unified");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'umount -Rl /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
         exec \"$0\" \"$@\"' {} \"$@\"\n",
        lab.runtime.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    lab.runtime = script;
    lab
}

#[test]
fn devices_and_cgroups_are_those_of_runc_where_there_is_v2_alone() {
    let patch = json!({
    "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}],
    "linux": {
        "namespaces": [{"type": "cgroup"}],
        "devices": [{"path": "/dev/one", "type": "c", "major": 1, "minor": 11, "fileMode": 438},
            {"path": "/dev/other", "type": "c", "major": 1, "minor": 1, "fileMode": 438}],
        "resources": {"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]},
    }});
    let script = "cat /proc/self/cgroup | grep ^0::; wc -l < /sys/fs/cgroup/cgroup.procs; test -e /sys/fs/cgroup/cgroup.freeze && echo inside; \
        touch /sys/fs/cgroup/x 2>&1; (: > /dev/one) && echo written; (: < /dev/one) || echo unread; \
        (: < /dev/other) || echo no other; echo > /dev/null && echo null";
    let seen = |lab: Lab| {
        let ran = lab.run(&patch, script);
        assert!(leftovers::cgroups(&lab.id()).is_empty(), "a cgroup is left");
        (ran.code, ran.stdout)
    };
    let ours = seen(unified(Lab::ours()));
    assert_eq!(ours, seen(unified(Lab::runc())));
    assert!(ours.1.contains("written\nunread\nno other\nnull\n"), "{ours:?}");
}

#[test]
fn a_life_by_commands_is_that_under_runc_where_there_is_v2_alone() {
    let life = |lab: Lab| {
        let id = lab.id();
        let quiet = |args: &[&str]| {
            let mut command = lab.command(args);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
        };
        let status = || {
            let state: Value = serde_json::from_str(&lab.call(&["state", &id]).stdout).unwrap_or_default();
            state["status"].as_str().unwrap_or("none").to_owned()
        };
        lab.configure(&json!({}), "trap '' TERM; sleep 1000 & wait; wait");
        let mut seen = Vec::new();
        for args in [&["create", &id][..], &["start", &id], &["pause", &id], &["resume", &id]] {
            seen.push((quiet(args), status()));
        }
        let added = lab.call(&["exec", &id, "sh", "-c", "grep ^0:: /proc/self/cgroup; exit 5"]);
        seen.push((added.code, added.stdout.replace(&id, "ID")));
        // Also while it is frozen.
        seen.push((quiet(&["pause", &id]), status()));
        seen.push((quiet(&["kill", "--all", &id, "KILL"]), String::new()));
        eventually("it ends", Duration::from_secs(60), || (status() == "stopped").then_some(()));
        seen.push((quiet(&["delete", &id]), status()));
        assert!(leftovers::cgroups(&id).is_empty(), "a cgroup is left");
        seen
    };
    let (ours, theirs) = (life(unified(Lab::ours())), life(unified(Lab::runc())));
    for (number, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
        assert_eq!(ours, theirs, "step {number}");
    }
}
