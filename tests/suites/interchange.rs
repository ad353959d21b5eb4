//! The parts are interchangeable with Debian's containerd: clients, daemons and shims of both.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::time::Duration;

use corten_tests::{Finished, ImageBuilder, Node, Peers, Registry, command, eventually, peers};
use rustix::process::{Pid, Signal, kill_process};

/// One container's life through `client`: pull, run, exec, kill, remove.
fn lead_a_life(node: &Node, client: &Path, registry: &Registry) {
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/busybox:1.0");
    let ctr = |args: &[&str]| -> Finished { command::run(node.foreign_ctr_command(client, args)) };
    ctr(&["images", "pull", "--plain-http", &image]).ok();
    assert!(ctr(&["images", "ls", "-q"]).ok().contains(&image));
    assert_eq!(ctr(&["run", "--rm", &image, "first", "echo", "hello"]).ok(), "hello\n");
    assert_eq!(ctr(&["run", "--rm", &image, "second", "sh", "-c", "exit 42"]).code, Some(42));
    ctr(&["run", "-d", &image, "third", "sleep", "1000"]).ok();
    let entered = ctr(&["tasks", "exec", "--exec-id", "e", "third", "sh", "-c", "echo in; exit 7"]);
    assert_eq!((entered.code, entered.stdout.as_str()), (Some(7), "in\n"), "{entered:?}");
    let listed = ctr(&["tasks", "ls"]).ok();
    assert!(listed.lines().any(|line| line.starts_with("third") && line.contains("RUNNING")), "{listed}");
    ctr(&["tasks", "kill", "--signal", "SIGKILL", "third"]).ok();
    eventually("the task stops", Duration::from_secs(10), || {
        ctr(&["tasks", "ls"]).stdout.contains("STOPPED").then_some(())
    });
    ctr(&["tasks", "rm", "third"]);
    ctr(&["containers", "rm", "third"]).ok();
    assert_eq!(ctr(&["containers", "ls", "-q"]).ok(), "");
    ctr(&["images", "rm", "--sync", &image]).ok();
    assert_eq!(ctr(&["images", "ls", "-q"]).ok(), "");
}

#[test]
fn debians_ctr_1_6_works_on_our_daemon() {
    let node = Node::start();
    lead_a_life(&node, &Peers::find().containerd_1_6().join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn debians_ctr_2_1_works_on_our_daemon() {
    let node = Node::start();
    lead_a_life(&node, &Peers::find().containerd_2_1().join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn our_ctr_works_on_debians_containerd_2_1() {
    let node = Node::peer(&Peers::find().containerd_2_1()).start();
    lead_a_life(&node, &peers::programs().join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn our_shim_works_under_debians_containerd_1_6() {
    let debian = Peers::find().containerd_1_6();
    let node = Node::peer(&debian).search(&[peers::programs()]).start();
    lead_a_life(&node, &debian.join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn our_shim_works_under_debians_containerd_2_1() {
    let debian = Peers::find().containerd_2_1();
    let node = Node::peer(&debian).search(&[peers::programs()]).start();
    lead_a_life(&node, &debian.join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn debians_shim_2_1_with_runc_works_under_our_daemon() {
    let peers = Peers::find();
    let node = Node::builder().search(&[peers.containerd_2_1(), peers.runc()]).start();
    lead_a_life(&node, &self::peers::programs().join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn debians_shim_1_6_with_runc_works_under_our_daemon() {
    let peers = Peers::find();
    let node = Node::builder().search(&[peers.containerd_1_6(), peers.runc()]).start();
    lead_a_life(&node, &self::peers::programs().join("ctr"), &Registry::start());
    node.finish();
}

#[test]
fn our_shim_runs_the_runtime_named_in_its_options() {
    let peers = Peers::find();
    let node = Node::start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/busybox:1.0");
    node.ctr(["images", "pull", "--plain-http", &image]).ok();
    let runc = peers.runc().join("runc");
    let output = node
        .ctr(["run", "--rm", "--runc-binary", runc.to_str().unwrap(), &image, "r", "echo", "by runc"])
        .ok();
    assert_eq!(output, "by runc\n");
    let missing = node.ctr(["run", "--rm", "--runc-binary", "/nowhere/runc", &image, "n", "true"]);
    assert!(missing.fails(1).contains("no such file or directory"));
    node.ctr(["containers", "rm", "n"]);
    node.finish();
}

#[test]
fn a_shim_that_speaks_grpc_works_under_our_daemon() {
    const RUNTIME: &str = "io.containerd.grpc.v1";
    let mut node = Node::start();
    let archive = node.join("image.tar");
    let image = "example.com/lab/busybox:1";
    ImageBuilder::busybox().build().save(&archive, image).unwrap();
    node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    let run = ["run", "--runtime", RUNTIME];
    assert_eq!(
        node.ctr([&run[..], &["--rm", image, "one", "sh", "-c", "echo out; exit 3"]].concat()).code,
        Some(3)
    );
    node.ctr([&run[..], &["-d", image, "two", "sleep", "1000"]].concat()).ok();
    let exec = |node: &Node, id: &str| {
        let entered = node.ctr(["tasks", "exec", "--exec-id", id, "two", "sh", "-c", "echo in; exit 7"]);
        assert_eq!((entered.code, entered.stdout.as_str()), (Some(7), "in\n"), "{entered:?}");
    };
    exec(&node, "before");
    node.ctr(["tasks", "exec", "--exec-id", "none", "two", "no-such-program"])
        .fails_with("executable file not found");
    node.kill_daemon();
    node.start_daemon();
    exec(&node, "after");
    let (pid, status) = node.task("two").unwrap();
    assert_eq!(status, "RUNNING");
    // Both processes of it are lost.
    for shim in node.shims() {
        kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    }
    eventually("the loss is noticed", Duration::from_secs(60), || node.task("two").is_none().then_some(()));
    eventually("the process is ended", Duration::from_secs(60), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    node.ctr(["containers", "rm", "two"]).ok();
    node.finish();
}
