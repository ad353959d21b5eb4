//! Nothing leaks and nothing is handed out twice, whatever is killed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use corten_network::NetworkNamespace;
use corten_tests::{Node, eventually};
use rustix::process::{Pid, Signal, kill_process};

use crate::{IMAGE, Lab};

/// The addresses of all leases.
fn leases(state: &[String]) -> HashSet<&str> {
    state.iter().filter_map(|it| it.strip_prefix("leases/lab/")).collect()
}

#[test]
fn two_hundred_containers_come_and_go_while_the_daemon_is_killed() {
    const ALL: usize = 200;
    const AT_ONCE: usize = 20;
    let mut lab = Lab::start();
    lab.ctr(["network", "create", "--subnet", "10.90.0.0/24", "lab"]).ok();
    lab.ctr(["run", "--rm", "--network", "lab", IMAGE, "first", "true"]).ok();
    let before = lab.state();
    let rules = lab.rules();
    let mut number = 0;
    let mut random = 12345_u32;
    while number < ALL {
        let ids: Vec<String> = (number..number + AT_ONCE).map(|number| format!("c{number}")).collect();
        number += AT_ONCE;
        let running: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(at, id)| {
                let port = format!("{}:80", 9000 + at);
                lab.start_ctr([
                    "run",
                    "-d",
                    "--network",
                    "lab",
                    "--publish",
                    &port,
                    IMAGE,
                    id,
                    "sleep",
                    "1000",
                ])
            })
            .collect();
        // At some moment in the middle of it.
        random = random.wrapping_mul(1_103_515_245).wrapping_add(12345);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 400));
        let mut node = lab.node.take().unwrap();
        node.kill_daemon();
        for one in running {
            // Those that lost the daemon say so; what they began is looked at below.
            let _ = one.finish();
        }
        lab.on(|| node.start_daemon());
        lab.node = Some(node);
        let tasks = lab.node().tasks();
        let alive = tasks.iter().filter(|(.., status)| status == "RUNNING").count();
        let state = lab.state();
        assert!(leases(&state).len() >= alive, "{alive} run: {state:?}");
        // Half of the shims are killed, too: their containers are buried by the daemon.
        for shim in lab.node().shims().into_iter().step_by(2) {
            end(shim);
        }
        let all: Vec<&str> = ids.iter().map(String::as_str).collect();
        lab.ctr([&["tasks", "rm", "--force"][..], &all].concat());
        lab.ctr([&["containers", "rm"][..], &all].concat());
        eventually("all tasks are gone", Duration::from_secs(60), || {
            lab.node().tasks().is_empty().then_some(())
        });
        // Shims that were started for a daemon that had gone end by themselves, or nobody knows them.
        let late = Instant::now() + Duration::from_secs(60);
        loop {
            lab.ctr(["network", "prune"]).ok();
            let state = lab.state();
            if state == before {
                break;
            }
            lab.node().shims().into_iter().for_each(end);
            let left: Vec<&String> = state.iter().filter(|one| !before.contains(one)).collect();
            assert!(
                Instant::now() < late,
                "what is nobody's is not swept: {left:?}, {:?}",
                lab.node().leftovers()
            );
        }
    }
    assert_eq!(lab.state(), before);
    assert_eq!(lab.rules(), rules);
    lab.ctr(["network", "rm", "lab"]).ok();
    assert_eq!((lab.state(), lab.rules()), (vec!["link lo".to_owned()], String::new()));
    lab.finish();
}

#[test]
fn after_a_reboot_nothing_is_attached_and_everything_is_free() {
    let mut lab = Lab::start();
    lab.ctr(["network", "create", "--subnet", "10.90.0.0/29", "lab"]).ok();
    let start = |lab: &Lab, id: &str, port: &str| {
        lab.ctr(["run", "-d", "--network", "lab", "--publish", port, IMAGE, id, "sleep", "1000"])
    };
    for (id, port) in [("a", "81:80"), ("b", "82:80"), ("c", "83:80"), ("d", "84:80"), ("e", "85:80")] {
        start(&lab, id, port).ok();
    }
    assert!(start(&lab, "f", "86:80").fails(1).contains("no IP addresses available"), "all are taken");
    lab.ctr(["containers", "rm", "f"]);
    // The power goes: processes, state folder and kernel are new, the root folder stays.
    let mut node = lab.node.take().unwrap();
    let processes: Vec<u32> = node.tasks().into_iter().map(|(_, pid, _)| pid).collect();
    node.kill_daemon();
    for pid in node.shims().into_iter().chain(processes.into_iter().map(u32::cast_signed)) {
        end(pid);
    }
    for mount in ["state", "run"] {
        unmount_below(&node, mount);
        std::fs::remove_dir_all(node.join(mount)).ok();
    }
    lab.host = NetworkNamespace::new().unwrap();
    std::fs::write(lab.root().join("boot"), "another").unwrap();
    lab.on(|| node.start_daemon());
    lab.node = Some(node);
    for (id, port) in [("a2", "81:80"), ("b2", "82:80"), ("c2", "83:80"), ("d2", "84:80"), ("e2", "85:80")] {
        start(&lab, id, port).ok();
    }
    let state = lab.state();
    assert_eq!(leases(&state).len(), 5, "{state:?}");
    for id in ["a", "b", "c", "d", "e", "a2", "b2", "c2", "d2", "e2"] {
        lab.ctr(["tasks", "rm", "--force", id]);
        lab.ctr(["containers", "rm", id]).ok();
    }
    lab.ctr(["network", "rm", "lab"]).ok();
    assert_eq!(lab.state(), ["link lo"]);
    // The harness takes away what a boot would have: cgroups and states of before.
    drop(lab);
}

fn end(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).ok();
}

fn unmount_below(node: &Node, name: &str) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = node.join(name);
    let mut mounts: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    mounts.retain(|mount| std::path::Path::new(mount).starts_with(&below));
    for mount in mounts.into_iter().rev() {
        rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).ok();
    }
}
