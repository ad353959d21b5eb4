//! Options of the configuration that show outside.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use corten_api::services::content::{WriteAction, WriteContentRequest};
use corten_tests::{Client, ImageBuilder, Node, Registry, Scratch, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::ours;

#[test]
fn folders_and_sockets_are_where_and_whose_they_are_told_to_be() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.join(name);
    let node = Node::builder()
        .config(&format!(
            "version = 2\ntemp = '{}'\noom_score = 321\n[grpc]\ngid = 4321\n[plugins.'io.containerd.internal.v1.opt']\npath = '{}'\n[plugins.'io.containerd.snapshotter.v1.native']\nroot_path = '{}'\n",
            at("temp").display(),
            at("opt").display(),
            at("native").display(),
        ))
        .start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for (path, bits) in [
        (at("temp"), 0o700),
        (at("opt/bin"), 0o711),
        (at("opt/lib"), 0o711),
        (node.join("root"), 0o700),
        (node.join("state"), 0o711),
        (node.address(), 0o660),
    ] {
        assert_eq!(mode(&path), bits, "{}", path.display());
    }
    for socket in [node.address(), node.join("run/c.sock.ttrpc")] {
        assert_eq!(std::fs::metadata(socket).unwrap().gid(), 4321);
    }
    let pid = node.pid().unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "321");
    node.ctr(["snapshots", "--snapshotter", "native", "prepare", "one"]).ok();
    assert_eq!(std::fs::read_dir(at("native/snapshots")).unwrap().count(), 1);
    node.ctr(["snapshots", "--snapshotter", "native", "rm", "one"]).ok();

    // Shims are found among the installed programs first.
    let shim = at("opt/bin/containerd-shim-lab-v1");
    std::fs::write(&shim, "#!/bin/sh\necho found me >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), "example.com/lab/box:1").unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    node.ctr(["run", "--runtime", "io.containerd.lab.v1", "example.com/lab/box:1", "c"])
        .fails_with("found me");
    node.ctr(["containers", "rm", "c"]);

    // What it does is told on demand.
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::USR1).unwrap();
    let dump = at("temp").join(format!("containerd.{pid}.stacks.log"));
    let text = eventually("the stack dump", Duration::from_secs(30), || {
        std::fs::read_to_string(&dump).ok().filter(|text| text.contains("thread "))
    });
    assert!(text.contains("tasks: ") && text.contains("\"tokio-rt-worker\""), "{text}");
    node.finish();
}

#[test]
fn long_messages_are_refused_from_the_length_that_is_set() {
    let node = Node::builder().config("version = 2\n[grpc]\nmax_recv_message_size = 100000\n").start();
    let client = Client::new(&node.address(), Some(node.namespace()));
    let write = |size: usize| {
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: "one".into(),
            data: vec![0; size].into(),
            ..WriteContentRequest::default()
        };
        client.block_on(async {
            let mut answers = client.content().write(tokio_stream::iter([request])).await?.into_inner();
            answers.message().await.map(drop)
        })
    };
    write(90_000).unwrap();
    let refused = write(110_000).unwrap_err().code();
    assert!([Code::ResourceExhausted, Code::OutOfRange].contains(&refused), "{refused:?}");
    node.ctr(["content", "active"]).ok();
    let abort = corten_api::services::content::AbortRequest { r#ref: "one".into() };
    client.wait(client.content().abort(abort)).unwrap();
    node.finish();
}

#[test]
fn images_that_a_verifier_refuses_are_not_pulled() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.join("bin")).unwrap();
    let verifier = scratch.join("bin/judge");
    std::fs::write(&verifier, "#!/bin/sh\ncat >/dev/null\necho not today\nexit 1\n").unwrap();
    std::fs::set_permissions(&verifier, std::fs::Permissions::from_mode(0o755)).unwrap();
    let node = Node::builder()
        .config(&format!(
            "version = 3\n[plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = '{}'\n",
            scratch.join("bin").display()
        ))
        .start();
    let registry = Registry::start();
    let image = registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    let refused = node.ctr(["images", "pull", "--plain-http", &image]).fails(1);
    assert!(
        refused.contains("image verifier bindir blocked pull of") && refused.contains("not today"),
        "{refused}"
    );
    std::fs::write(&verifier, "#!/bin/sh\ncat >/dev/null\n").unwrap();
    node.ctr(["images", "pull", "--plain-http", &image]).ok();
    node.ctr(["images", "rm", "--sync", &image]).ok();
    node.finish();
}

#[test]
fn hosts_are_looked_up_in_the_folder_that_is_configured() {
    let registry = Registry::start();
    registry.push(&ImageBuilder::busybox().build(), "lab/box:1");
    let scratch = Scratch::new();
    let folder = scratch.join("certs.d/registry.test");
    std::fs::create_dir_all(&folder).unwrap();
    let hosts = format!("server = \"http://{0}\"\n[host.\"http://{0}\"]\n", registry.host());
    std::fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let node = Node::builder()
        .config(&format!(
            "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nconfig_path = '{}'\n",
            scratch.join("certs.d").display()
        ))
        .start();
    node.ctr(["images", "pull", "registry.test/lab/box:1"]).ok();
    node.ctr(["images", "rm", "--sync", "registry.test/lab/box:1"]).ok();
    node.finish();
}

#[test]
fn a_second_daemon_on_a_root_fails_or_waits() {
    let mut node = Node::start();
    let second = |config: &str| {
        let file = node.join("second.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(node.join("second.log")).unwrap();
        Command::new(ours())
            .arg("-c")
            .arg(&file)
            .arg("--root")
            .arg(node.join("root"))
            .arg("--state")
            .arg(node.join("state2"))
            .arg("-a")
            .arg(node.join("second.sock"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    };
    let mut failing = second("version = 3\n[timeouts]\n'io.containerd.timeout.bolt.open' = '1s'\n");
    let status =
        eventually("the second daemon gives up", Duration::from_secs(30), || failing.try_wait().unwrap());
    let said = std::fs::read_to_string(node.join("second.log")).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("is in use by another daemon"), "{said}");

    node.ctr(["snapshots", "prepare", "kept"]).ok();
    let mut waiting = second("version = 3\n");
    std::thread::sleep(Duration::from_millis(700));
    assert!(waiting.try_wait().unwrap().is_none() && !node.join("second.sock").exists(), "it waits");
    node.ctr(["snapshots", "info", "kept"]).ok();
    node.stop_daemon();
    let client = Client::new(&node.join("second.sock"), Some(node.namespace()));
    eventually("the second daemon serves", Duration::from_secs(30), || {
        let stat = corten_api::services::snapshots::StatSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: "kept".into(),
        };
        client.wait(client.snapshots().stat(stat)).ok()
    });
    kill_process(Pid::from_child(&waiting), Signal::TERM).unwrap();
    eventually("the second daemon ends", Duration::from_secs(30), || waiting.try_wait().unwrap());
    node.start_daemon();
    node.ctr(["snapshots", "rm", "kept"]).ok();
    node.finish();
}
