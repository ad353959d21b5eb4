//! What goes wrong around `ctr`: one line, the right exit code, no panic.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use corten_tests::command::run;
use corten_tests::{Finished, Node, Running, ScriptedRegistry, eventually};

use crate::{IMAGE, node, program};

/// A message of one line, and nothing of a panic.
#[track_caller]
fn fails_in_one_line(finished: Finished, text: &str) {
    let message = finished.fails_with(text);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("ctr: ") && !message.contains("panicked"), "{message}");
}

#[test]
fn a_socket_that_may_not_be_used_is_told_with_advice() {
    let node = Node::start();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program());
    command.arg("--address").arg(node.address()).args(["c", "ls"]);
    let told = run(command);
    let message = told.fails(1);
    assert!(message.contains("permission denied") && message.lines().count() == 1, "{message}");
    let mut folder = Command::new(program());
    folder.arg("--address").arg(node.path()).args(["c", "ls"]);
    fails_in_one_line(run(folder), "failed to dial");
    node.finish();
}

#[test]
fn a_daemon_that_goes_away_ends_whatever_waits_for_it() {
    let mut node = node();
    let log = format!("file://{}", node.join("log").display());
    node.ctr(["run", "-d", "--log-uri", &log, IMAGE, "kept", "sh", "-c", "echo begun; exec sleep 1000"]).ok();
    let script = "echo begun; exec sleep 1000";
    let waiting = [
        node.ctr_running(["run", IMAGE, "box", "sh", "-c", script]),
        node.ctr_running(["logs", "-f", "kept"]),
        node.ctr_running(["t", "exec", "--exec-id", "more", "kept", "sh", "-c", script]),
    ];
    for one in &waiting {
        assert_eq!(one.next_output(Duration::from_secs(60)).as_deref(), Some("begun\n"));
    }
    node.kill_daemon();
    for one in waiting {
        fails_in_one_line(one.finish(), "error reading from server");
    }
    node.start_daemon();
    assert_eq!(node.tasks().len(), 2, "containers go on");
    for id in ["box", "kept"] {
        node.ctr(["stop", "-t", "0s", "--rm", id]).ok();
    }
    node.finish();
}

#[test]
fn a_daemon_that_goes_away_ends_transfers() {
    let mut node = node();
    let image = corten_tests::ImageBuilder::new()
        .layer(corten_tests::Layer::new().file("data", 0o644, &[7; 100_000]).finish())
        .build();
    let registry = ScriptedRegistry::start(image);
    registry.cue("/blobs/", corten_tests::Fault::Hang, usize::MAX);
    let pulling =
        node.ctr_running(["images", "pull", "--progress", "none", "--plain-http", &registry.reference()]);
    // An archive that never ends.
    let mut command = node.ctr_command(["images", "import", "--progress", "none", "-"]);
    let mut importing =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = importing.stdin.take().unwrap();
    let archive = std::fs::read(node.join("image.tar")).unwrap();
    input.write_all(&archive[..archive.len() / 2]).unwrap();
    let mut command = node.ctr_command(["content", "ingest", "never"]);
    let mut ingesting =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut more = ingesting.stdin.take().unwrap();
    more.write_all(&archive[..100_000]).unwrap();
    eventually("the pull waits for a blob", Duration::from_secs(60), || {
        registry.requests().iter().any(|line| line.contains("/blobs/")).then_some(())
    });
    node.kill_daemon();
    fails_in_one_line(pulling.finish(), "error reading from server");
    for (mut child, input) in [(importing, input), (ingesting, more)] {
        let begun = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
                panic!("it goes on without a daemon");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        drop(input);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.starts_with("ctr: ") && !message.contains("panicked"), "{message}");
    }
    node.start_daemon();
    registry.recover();
    node.ctr(["images", "pull", "--progress", "none", "--plain-http", &registry.reference()]).ok();
    node.finish();
}

/// Runs a command whose output nobody can take; its exit code and what it says of that.
fn into(node: &Node, args: &[&str], output: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut command = node.ctr_command(args.iter().copied());
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn full_disks_and_readers_that_have_gone_end_whatever_writes() {
    let node = node();
    node.ctr(["c", "create", IMAGE, "box"]).ok();
    fails_in_one_line(node.ctr(["images", "export", "/dev/full", IMAGE]), "no space left on device");
    // That of the image: what nothing names may be collected by now.
    let images = node.ctr(["images", "ls"]).ok();
    let digest = images.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();
    for args in [
        &["plugins", "ls"][..],
        &["plugins", "ls", "-q"],
        &["--help"],
        &["version"],
        &["oci", "spec"],
        &["info"],
        &["completion", "bash"],
        &["images", "export", "-", IMAGE],
        &["content", "get", digest],
        &["cp", "box:/bin", "-"],
        &["snapshots", "diff", "box"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, told) = into(&node, args, full);
        assert_eq!(code, Some(1), "{args:?}: {told}");
        assert!(told.starts_with("ctr: ") && told.ends_with("no space left on device\n"), "{args:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{args:?}: {told}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(into(&node, args, writer), (Some(141), String::new()), "{args:?}");
    }
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}

#[test]
fn words_that_mean_nothing_are_refused_with_what_may_be_meant() {
    let node = Node::start();
    for (args, code, text) in [
        (&["contaners"][..], 3, "No help topic for 'contaners'"),
        (&["images", "lst"], 3, "No help topic for 'lst'"),
        (&["top", "--nope"], 1, "ctr: flag provided but not defined: -nope"),
        (&["logs"], 0, ""),
        (&["cp", "one"], 0, ""),
        (&["logs", "--tail", "x", "box"], 1, "invalid value \"x\" for flag -tail"),
        (&["logs", "nope"], 1, "ctr: container \"nope\" in namespace"),
        (&["diff", "nope"], 1, "ctr: container \"nope\" in namespace"),
        (&["images", "history", "nope"], 1, "ctr: image \"nope\": not found"),
        (&["stats", "--interval", "soon"], 1, "invalid value \"soon\" for flag -interval"),
        (&["-n", "a b", "top"], 1, ""),
        (&["run", "--detach-keys", "ctrl-", IMAGE, "x"], 1, "invalid value \"ctrl-\" for flag -detach-keys"),
    ] {
        let told = node.ctr(args.iter().copied());
        assert!(told.code == Some(code) && told.stderr.contains(text), "{args:?}: {told:?}");
        assert!(!told.stderr.contains("panicked"), "{told:?}");
    }
    let mut terminal = corten_tests::Session::start(&node.ctr_command(["images", "lst"]));
    terminal.press("");
    let (code, told) = terminal.finish();
    assert!(code == 3 && told.contains("hint: did you mean 'list'?") || told.contains("'ls'?"), "{told}");
    let (_, told) = corten_tests::Session::start(&node.ctr_command(["run", "--deatch"])).finish();
    assert!(told.contains("hint: did you mean --detach?"), "{told}");
    let running = Running::start(node.ctr_command(["stats", "nope", "--once"]), None);
    assert_eq!(running.finish().code, Some(0), "nobody of that name runs");
    node.finish();
}
