//! What the program says when it is not, or cannot be, the daemon.

use corten_tests::{Node, Scratch, eventually};
use corten_types::Any;
use prost::Message;
use std::time::Duration;

use crate::{ours, run, run_with_input, theirs};

#[test]
fn failures_are_told_as_debians_tells_them() {
    let scratch = Scratch::new();
    let rows = [
        ("version = 2\ndisabled_plugins = ['cri']", vec![]),
        ("version = 2\nrequired_plugins = ['cri']", vec![]),
        ("version = 3\n[timeouts]\nx = 'odd'", vec![]),
        ("version = 3\nrequired_plugins = ['x.y.z']", vec![]),
        (
            "version = 3\ndisabled_plugins = ['io.containerd.event.v1.exchange']\nrequired_plugins = ['io.containerd.event.v1.exchange']",
            vec![],
        ),
        (
            "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri', 'io.containerd.event.v1.exchange']\nrequired_plugins = ['io.containerd.metadata.v1.bolt']",
            vec![],
        ),
        ("version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = 'odd'", vec![]),
        ("version = 3", vec!["--root", "/tmp/same", "--state", "/tmp/same"]),
    ];
    for (at, (text, flags)) in rows.iter().enumerate() {
        let told: Vec<String> = [ours(), theirs()]
            .iter()
            .map(|program| {
                let file = scratch.join(format!("{at}.toml"));
                std::fs::write(&file, text).unwrap();
                let path = |name: &str| scratch.join(name).display().to_string();
                let mut args = vec!["-c".to_owned(), file.display().to_string()];
                args.extend(["--root".into(), path("root"), "--state".into(), path("state")]);
                args.extend(["-a".into(), path("c.sock")]);
                args.extend(flags.iter().map(ToString::to_string));
                let failed = run(program, args).fails(1);
                failed.lines().find(|line| line.starts_with("containerd: ")).unwrap_or(&failed).to_owned()
            })
            .collect();
        // The folder of the test is in some of them.
        assert_eq!(told[0], told[1], "{text}");
    }
}

#[test]
fn a_file_that_is_named_must_exist() {
    let told = [ours(), theirs()].map(|program| run(&program, ["-c", "/nonexistent/c.toml"]).fails(1));
    assert_eq!(told[0].lines().next(), told[1].lines().next());
}

#[test]
fn words_that_are_no_command_start_no_daemon() {
    for words in [vec!["foo", "bar"], vec!["config", "foo"]] {
        let told = run(&ours(), &words);
        let topic = words.iter().find(|word| **word == "foo").unwrap();
        assert_eq!((told.code, told.stdout), (Some(3), format!("No help topic for '{topic}'\n")));
    }
    let version = run(&ours(), ["--version"]).ok();
    assert!(version.starts_with("containerd github.com/containerd/containerd/v2 2."), "{version}");
}

#[test]
fn events_are_published() {
    let node = Node::start();
    let events = node.ctr_running(["events"]);
    // ContainerDelete, whose first field is an id.
    let any = Any { type_url: "containerd.events.ContainerDelete".into(), value: b"\x0a\x02c1".to_vec() };
    let any = any.encode_to_vec();
    let address = node.address();
    let args =
        ["--address", address.to_str().unwrap(), "publish", "--namespace", "lab", "--topic", "/test/told"];
    // Until the listener is there.
    let line = eventually("the event is told", Duration::from_secs(30), || {
        run_with_input(&ours(), &args, &any).ok();
        events.next_output(Duration::from_millis(200))
    });
    assert!(line.contains(" lab /test/told "), "{line}");
    let bad = ["--address", address.to_str().unwrap(), "publish", "--namespace", "lab", "--topic", "bad"];
    run_with_input(&ours(), &bad, &any).fails_with("topic");
    let none = run_with_input(&ours(), &["publish"], b"").fails(1);
    assert_eq!(none, run_with_input(&theirs(), &["publish"], b"").stderr);
    drop(events);
    node.finish();
}

#[test]
fn hooks_run_with_facts_about_their_container() {
    let scratch = Scratch::new();
    std::fs::write(scratch.join("config.json"), r#"{"root":{"path":"rootfs"}}"#).unwrap();
    let state = format!(
        r#"{{"ociVersion":"1.0","id":"c1","status":"created","pid":42,"bundle":"{}","annotations":{{"k":"v w"}}}}"#,
        scratch.path().display()
    );
    let rows: [&[&str]; 8] = [
        &[
            "/bin/echo",
            "{{id}} {{ bundle }} {{rootfs}}",
            "{{pid}}{{status}}",
            "{{annotation \"k\"}}|{{annotation `no`}}",
        ],
        &["/bin/echo", "x {{- id -}} y", "{{/* c */}}z", "{{\"lit\"}}"],
        &["/bin/sh", "-c", "echo $CORTEN_TEST"],
        &["/bin/echo", "{{foo}}"],
        &["/bin/echo", "{{id"],
        &["/bin/echo", "{{annotation}}"],
        &["echo", "is not searched for"],
        &["/nonexistent/{{id}}"],
    ];
    for row in rows {
        let args = [&["oci-hook", "--"], row].concat();
        let [mine, other] =
            [ours(), theirs()].map(|program| run_with_input(&program, &args, state.as_bytes()));
        assert_eq!(
            (mine.code, mine.stdout, mine.stderr),
            (other.code, other.stdout, other.stderr),
            "{row:?}"
        );
    }
    let none = br#"{"bundle":"/nonexistent"}"#;
    let [mine, other] =
        [ours(), theirs()].map(|program| run_with_input(&program, &["oci-hook", "--", "/bin/true"], none));
    assert_eq!((mine.code, mine.stderr), (other.code, other.stderr));
}
