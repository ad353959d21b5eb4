//! The restart monitor (spec 00 §7).

use corten_tests::{Node, eventually};
use serde_json::Value;

use crate::{IMAGE, PATIENCE, import, remove};

const STATUS: &str = "containerd.io/restart.status";
const POLICY: &str = "containerd.io/restart.policy";
const COUNT: &str = "containerd.io/restart.count";
const STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const LOG_URI: &str = "containerd.io/restart.loguri";

const CONFIG: &str = "version = 3\n[plugins.'io.containerd.monitor.container.v1.restart']\ninterval = '3s'\n";

fn node() -> Node {
    let node = Node::builder().config(CONFIG).start();
    import(&node);
    node
}

fn run(node: &Node, id: &str, labels: &[(&str, &str)], script: &str) {
    let mut command: Vec<String> = ["run", "-d"].map(str::to_owned).into();
    for (key, value) in labels {
        command.extend(["--label".to_owned(), format!("{key}={value}")]);
    }
    command.extend([IMAGE, id, "sh", "-c", script].map(str::to_owned));
    node.ctr(command).ok();
}

fn label(node: &Node, id: &str, key: &str) -> Option<String> {
    let record: Value = serde_json::from_str(&node.ctr(["containers", "info", id]).ok()).unwrap();
    Some(record.pointer("/Labels")?.get(key)?.as_str()?.to_owned())
}

fn count(node: &Node, id: &str) -> i64 {
    label(node, id, COUNT).map_or(0, |text| text.parse().unwrap())
}

fn log(node: &Node, name: &str) -> String {
    std::fs::read_to_string(node.join(name)).unwrap_or_default()
}

#[test]
fn what_ends_is_started_again_as_its_policy_says() {
    let node = node();
    let running = (STATUS, "running");
    let uri = format!("file://{}", node.join("always.log").display());
    run(&node, "always", &[running, (LOG_URI, &uri)], "echo once; exit 0");
    run(&node, "failing", &[running, (POLICY, "on-failure:2")], "exit 3");
    run(&node, "succeeding", &[running, (POLICY, "on-failure")], "exit 0");
    run(&node, "unless", &[running, (POLICY, "unless-stopped")], "exit 3");
    run(&node, "stopped", &[running, (POLICY, "unless-stopped"), (STOPPED, "true")], "exit 3");
    run(&node, "never", &[running, (POLICY, "no")], "exit 3");
    run(&node, "bogus", &[running, (POLICY, "bogus")], "exit 3");
    run(&node, "unlabelled", &[], "exit 3");
    eventually("what ends is started again", PATIENCE, || {
        (count(&node, "always") >= 3 && count(&node, "unless") >= 3 && count(&node, "failing") >= 2)
            .then_some(())
    });
    eventually("the output of each run is kept", PATIENCE, || {
        (log(&node, "always.log").matches("once").count() >= 3).then_some(())
    });
    // By now each of the others has been looked at as often.
    assert_eq!(count(&node, "failing"), 2);
    for id in ["succeeding", "stopped", "never", "bogus", "unlabelled"] {
        assert_eq!(label(&node, id, COUNT), None, "{id}");
        assert_eq!(node.task(id).unwrap().1, "STOPPED", "{id}");
    }
    assert!(node.log().contains("restart policy \\\"bogus\\\" not supported"), "{}", node.log());
    for id in ["always", "unless"] {
        node.ctr(["containers", "label", id, &format!("{STATUS}=")]).ok();
    }
    let all = ["always", "failing", "succeeding", "unless", "stopped", "never", "bogus", "unlabelled"];
    // A restart that had begun before goes on to its end.
    eventually("no restart is under way", PATIENCE, || {
        let before = ["always", "unless"].map(|id| count(&node, id));
        std::thread::sleep(std::time::Duration::from_millis(4000));
        (before == ["always", "unless"].map(|id| count(&node, id))).then_some(())
    });
    all.iter().for_each(|id| remove(&node, id));
    node.finish();
}

#[test]
fn what_is_to_be_stopped_is_stopped_and_what_is_paused_is_left_alone() {
    let node = node();
    run(&node, "paused", &[], "sleep 1000");
    node.ctr(["tasks", "pause", "paused"]).ok();
    node.ctr(["containers", "label", "paused", &format!("{STATUS}=running")]).ok();
    let (pid, _) = node.task("paused").unwrap();
    run(&node, "unwanted", &[(STATUS, "stopped")], "sleep 1000");
    eventually("what is not wanted is gone", PATIENCE, || node.task("unwanted").is_none().then_some(()));
    // It was looked at as often as the other.
    assert_eq!(node.task("paused"), Some((pid, "PAUSED".into())));
    assert_eq!(label(&node, "paused", COUNT), None);
    node.ctr(["containers", "label", "paused", &format!("{STATUS}=")]).ok();
    node.ctr(["tasks", "resume", "paused"]).ok();
    remove(&node, "paused");
    remove(&node, "unwanted");
    node.finish();
}

#[test]
fn a_container_without_a_task_is_started_and_so_it_is_after_a_crash_of_everything() {
    let mut node = node();
    node.ctr([
        "containers",
        "create",
        "--label",
        &format!("{STATUS}=running"),
        IMAGE,
        "late",
        "sleep",
        "1000",
    ])
    .ok();
    let (first, _) =
        eventually("it is started", PATIENCE, || node.task("late").filter(|(_, status)| status == "RUNNING"));
    assert_eq!(count(&node, "late"), 1);
    // As after a loss of power: neither daemon nor shim nor process.
    node.kill_daemon();
    for pid in node.shims().into_iter().chain([i32::try_from(first).unwrap()]) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
    node.start_daemon();
    let (second, _) = eventually("it is started again", PATIENCE, || {
        node.task("late").filter(|(pid, status)| status == "RUNNING" && *pid != first)
    });
    assert_ne!(first, second);
    assert_eq!(count(&node, "late"), 2);
    node.ctr(["containers", "label", "late", &format!("{STATUS}=")]).ok();
    remove(&node, "late");
    node.finish();
}

#[test]
fn a_start_that_fails_counts_and_keeps_no_other_from_being_started() {
    let node = node();
    run(&node, "broken", &[(STATUS, "running"), (LOG_URI, "bogus://x")], "exit 3");
    run(&node, "sound", &[(STATUS, "running")], "exit 3");
    eventually("both are tried again and again", PATIENCE, || {
        (count(&node, "broken") >= 3 && count(&node, "sound") >= 3).then_some(())
    });
    for id in ["broken", "sound"] {
        node.ctr(["containers", "label", id, &format!("{STATUS}=")]).ok();
    }
    eventually("no restart is under way", PATIENCE, || {
        let before = ["broken", "sound"].map(|id| count(&node, id));
        std::thread::sleep(std::time::Duration::from_millis(4000));
        (before == ["broken", "sound"].map(|id| count(&node, id))).then_some(())
    });
    for id in ["broken", "sound"] {
        remove(&node, id);
    }
    node.finish();
}
