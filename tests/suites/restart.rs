//! A container outlives the daemon, and a lost shim leaves nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::time::Duration;

use corten_tests::{ImageBuilder, Node, eventually};
use rustix::process::{Pid, Signal, kill_process};

const IMAGE: &str = "example.com/lab/box:1";

fn node_with_image() -> Node {
    let node = Node::start();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), IMAGE).unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    node
}

fn remove(node: &Node, id: &str) {
    node.ctr(["tasks", "rm", "--force", id]);
    node.ctr(["containers", "rm", id]).ok();
}

#[test]
fn containers_run_on_while_the_daemon_is_killed_and_started_again() {
    let mut node = node_with_image();
    let script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let log = format!("file://{}", node.join("out.log").display());
    node.ctr(["run", "-d", "--log-uri", &log, IMAGE, "writer", "sh", "-c", script]).ok();
    node.ctr(["run", "-d", IMAGE, "sleeper", "sleep", "1000"]).ok();
    node.ctr(["run", "-d", IMAGE, "brief", "sh", "-c", "sleep 1; exit 23"]).ok();
    let before: Vec<_> = ["writer", "sleeper"].map(|id| node.task(id).unwrap()).into();
    assert!(before.iter().all(|(_, status)| status == "RUNNING"));

    node.kill_daemon();
    let written = std::fs::metadata(node.join("out.log")).unwrap().len();
    // `brief` ends while nobody watches.
    std::thread::sleep(Duration::from_millis(1500));
    node.start_daemon();

    let after: Vec<_> = ["writer", "sleeper"].map(|id| node.task(id).unwrap()).into();
    assert_eq!(before, after, "same pids, still running");
    assert!(std::fs::metadata(node.join("out.log")).unwrap().len() > written, "output went on");
    let entered = node.ctr(["tasks", "exec", "--exec-id", "again", "sleeper", "echo", "still here"]).ok();
    assert_eq!(entered, "still here\n");
    assert_eq!(node.task("brief").unwrap().1, "STOPPED");
    let attached = node.ctr(["tasks", "attach", "brief"]);
    assert_eq!(attached.code, Some(23), "the exit code is known: {attached:?}");
    for id in ["writer", "sleeper", "brief"] {
        remove(&node, id);
    }
    node.finish();
}

#[test]
fn an_attached_client_can_come_back_after_a_crash_of_the_daemon() {
    let mut node = node_with_image();
    node.ctr([
        "run",
        "-d",
        IMAGE,
        "clock",
        "sh",
        "-c",
        "i=0; while [ $i -lt 40 ]; do echo tick; i=$((i+1)); sleep 0.1; done; exit 9",
    ])
    .ok();
    node.kill_daemon();
    node.start_daemon();
    let attached = node.ctr(["tasks", "attach", "clock"]);
    assert_eq!(attached.code, Some(9), "{attached:?}");
    assert!(attached.stdout.contains("tick"), "{attached:?}");
    remove(&node, "clock");
    node.finish();
}

#[test]
fn a_clean_stop_leaves_containers_running() {
    let mut node = node_with_image();
    node.ctr(["run", "-d", IMAGE, "stay", "sleep", "1000"]).ok();
    let (pid, _) = node.task("stay").unwrap();
    node.stop_daemon();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    node.start_daemon();
    assert_eq!(node.task("stay"), Some((pid, "RUNNING".into())));
    remove(&node, "stay");
    node.finish();
}

#[test]
fn a_killed_shim_leaves_no_mount_process_or_bundle_and_its_task_reports_137() {
    let node = node_with_image();
    let events = node.ctr_running(["events"]);
    eventually("events flow", Duration::from_secs(10), || {
        node.ctr(["namespaces", "create", "probe"]);
        node.ctr(["namespaces", "rm", "probe"]);
        events.next_output(Duration::from_millis(100))
    });
    node.ctr(["run", "-d", IMAGE, "victim", "sleep", "1000"]).ok();
    let (pid, _) = node.task("victim").unwrap();
    let shims = node.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    kill_process(Pid::from_raw(shims[0]).unwrap(), Signal::KILL).unwrap();
    let mut told = String::new();
    eventually("the exit is told", Duration::from_secs(15), || {
        told.push_str(&events.next_output(Duration::from_millis(200)).unwrap_or_default());
        told.lines()
            .find(|line| line.contains("/tasks/exit"))
            .map(|line| assert!(line.contains("\"exit_status\":137"), "{line}"))
    });
    eventually("the process is gone", Duration::from_secs(10), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    eventually("nothing is left", Duration::from_secs(10), || {
        node.leftovers().iter().all(|left| left.contains("events")).then_some(())
    });
    drop(events);
    node.ctr(["containers", "rm", "victim"]).ok();
    node.finish();
}

#[test]
fn a_shim_lost_while_the_daemon_was_down_is_buried_at_its_start() {
    let mut node = node_with_image();
    node.ctr(["run", "-d", IMAGE, "victim", "sleep", "1000"]).ok();
    node.ctr(["run", "-d", IMAGE, "survivor", "sleep", "1000"]).ok();
    let (pid, _) = node.task("victim").unwrap();
    let (survivor, _) = node.task("survivor").unwrap();
    let parent = |pid: u32| -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let shim = parent(pid);
    node.kill_daemon();
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    node.start_daemon();
    eventually("the lost task is gone", Duration::from_secs(10), || {
        node.task("victim").is_none().then_some(())
    });
    eventually("its process is gone", Duration::from_secs(10), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    assert_eq!(node.task("survivor"), Some((survivor, "RUNNING".into())));
    remove(&node, "survivor");
    node.ctr(["containers", "rm", "victim"]).ok();
    node.finish();
}

#[test]
fn every_acknowledged_record_survives_a_crash() {
    let mut node = node_with_image();
    for n in 0..20 {
        node.ctr(["containers", "create", IMAGE, &format!("c{n}")]).ok();
    }
    node.kill_daemon();
    node.start_daemon();
    let listed = node.ctr(["containers", "ls", "-q"]).ok();
    assert_eq!(listed.lines().count(), 20, "{listed}");
    for n in 0..20 {
        node.ctr(["containers", "rm", &format!("c{n}")]).ok();
    }
    node.finish();
}
