//! What `ctr` does for people, and what it does when things go wrong around it.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use corten_tests::command::run;
use corten_tests::{Finished, ImageBuilder, Node, Running, Scratch, eventually};
use serde_json::Value;

const IMAGE: &str = "example.com/lab/box:1";

fn program() -> std::path::PathBuf {
    corten_tests::peers::programs().join("ctr")
}

fn ctr(address: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--address").arg(address).args(args);
    command
}

/// A message of one line, and nothing of a panic.
#[track_caller]
fn fails_in_one_line(finished: Finished, text: &str) {
    let message = finished.fails_with(text);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("ctr: ") && !message.contains("panicked"), "{message}");
}

fn node_with_image() -> Node {
    let node = Node::start();
    let archive = node.join("image.tar");
    ImageBuilder::busybox().build().save(&archive, IMAGE).unwrap();
    node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    node
}

/// Runs a command line on a terminal.
fn on_a_terminal(command: &Command) -> Finished {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> =
        words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &quoted.join(" "), "/dev/null"]);
    run(script)
}

#[test]
fn a_socket_that_is_absent_is_told_in_one_line() {
    let scratch = Scratch::new();
    let socket = scratch.join("nope.sock");
    let text = format!("cannot access socket {0}: stat {0}: no such file or directory", socket.display());
    fails_in_one_line(run(ctr(&socket, &["containers", "ls"])), &text);
    let told = on_a_terminal(&ctr(&socket, &["containers", "ls"]));
    assert!(told.stdout.contains("hint: is the daemon running?"), "{told:?}");
}

#[test]
fn a_file_and_a_dead_socket_are_told_in_one_line() {
    let scratch = Scratch::new();
    std::fs::write(scratch.join("file"), "").unwrap();
    fails_in_one_line(run(ctr(&scratch.join("file"), &["tasks", "ls"])), "failed to dial");
    drop(UnixListener::bind(scratch.join("dead")).unwrap());
    fails_in_one_line(run(ctr(&scratch.join("dead"), &["tasks", "ls"])), "connection refused");
}

#[test]
fn somebody_else_behind_the_socket_is_no_daemon() {
    let scratch = Scratch::new();
    let path = scratch.join("other");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    fails_in_one_line(run(ctr(&path, &["tasks", "ls"])), "unavailable");
}

#[test]
fn a_daemon_that_says_nothing_is_not_waited_for_for_ever() {
    let scratch = Scratch::new();
    let path = scratch.join("silent");
    let listener = UnixListener::bind(&path).unwrap();
    let keep = std::thread::spawn(move || {
        let streams: Vec<_> = listener.incoming().take(2).collect();
        std::thread::sleep(Duration::from_secs(30));
        drop(streams);
    });
    fails_in_one_line(run(ctr(&path, &["--connect-timeout", "200ms", "tasks", "ls"])), "unavailable");
    fails_in_one_line(run(ctr(&path, &["--timeout", "300ms", "tasks", "ls"])), "context deadline exceeded");
    drop(keep);
}

#[test]
fn a_daemon_that_goes_away_ends_who_listens_to_it() {
    let mut node = Node::start();
    let events = node.ctr_running(["events"]);
    eventually("events flow", Duration::from_secs(10), || {
        node.ctr(["namespaces", "create", "probe"]);
        node.ctr(["namespaces", "rm", "probe"]);
        events.next_output(Duration::from_millis(100))
    });
    node.kill_daemon();
    fails_in_one_line(events.finish(), "error reading from server");
    node.start_daemon();
    node.finish();
}

#[test]
fn bad_words_are_refused_without_harm() {
    let node = Node::start();
    let long = "x".repeat(100_000);
    node.ctr(["containers", "info", &long]).fails(1);
    node.ctr(["containers", "info", "\u{1b}[2J"]).fails(1);
    node.ctr(["--namespace=\n", "containers", "ls"]).fails(1);
    use std::os::unix::ffi::OsStrExt;
    let mut command = ctr(&node.address(), &["containers", "info"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    run(command).fails(1);
    node.finish();
}

#[test]
fn mistyped_commands_and_missing_images_come_with_advice_on_a_terminal_only() {
    let node = Node::start();
    let typed = node.ctr_command(["imgaes"]);
    let told = on_a_terminal(&typed);
    assert!(told.stdout.contains("hint: did you mean 'images'?"), "{told:?}");
    assert_eq!(run(typed).fails(3), "No help topic for 'imgaes'\n");
    let missing = node.ctr_command(["run", "example.com/none:1", "x"]);
    let told = on_a_terminal(&missing);
    assert!(told.stdout.contains("hint: pull it: ctr images pull example.com/none:1"), "{told:?}");
    assert_eq!(run(missing).fails(1), "ctr: image \"example.com/none:1\": not found\n");
    node.finish();
}

#[test]
fn lists_are_tables_json_or_plain() {
    let node = node_with_image();
    node.ctr(["containers", "create", IMAGE, "a"]).ok();
    let json: Value = serde_json::from_str(&node.ctr(["c", "ls", "--format", "json"]).ok()).unwrap();
    assert_eq!(json[0]["container"], "a");
    assert_eq!(json[0]["image"], IMAGE);
    let plain = node.ctr(["c", "ls", "--format", "plain"]).ok();
    assert_eq!(plain, node.ctr(["c", "ls"]).ok(), "what a pipe gets");
    let shown = on_a_terminal(&node.ctr_command(["c", "ls", "--format", "plain"])).ok().replace('\r', "");
    assert!(shown.ends_with(&plain), "{shown:?}");
    let yaml = node.ctr(["c", "ls", "--format", "yaml"]).ok();
    assert_eq!(yaml, format!("- container: a\n  image: {IMAGE}\n  runtime: io.containerd.runc.v2\n"));
    node.ctr(["c", "ls", "--format", "nope"]).fails_with("invalid value \"nope\" for flag -format");
    for args in [
        &["t", "ls"][..],
        &["plugins", "ls"],
        &["ns", "ls"],
        &["leases", "ls"],
        &["snapshots", "ls"],
        &["images", "ls"],
        &["content", "ls"],
        &["sandboxes", "ls"],
    ] {
        let text = node.ctr(args.iter().copied().chain(["--format", "json"])).ok();
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_array(), "{args:?}");
    }
    node.ctr(["c", "rm", "a"]).ok();
    node.finish();
}

#[test]
fn stop_asks_first_and_then_insists() {
    let node = node_with_image();
    let polite = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    node.ctr(["run", "-d", "--null-io", IMAGE, "polite", "sh", "-c", polite]).ok();
    // The first process of a container does not end by a signal that it does not handle.
    node.ctr(["run", "-d", "--null-io", IMAGE, "deaf", "sleep", "1000"]).ok();
    assert_eq!(node.ctr(["stop", "--grace", "30s", "--rm", "polite"]).ok(), "polite\n");
    assert_eq!(node.ctr(["stop", "--grace", "200ms", "deaf"]).ok(), "deaf\n");
    assert!(node.tasks().is_empty());
    assert_eq!(node.ctr(["c", "ls", "-q"]).ok(), "deaf\n");
    node.ctr(["stop", "nope"]).fails_with("container \"nope\" in namespace");
    node.ctr(["c", "rm", "deaf"]).ok();
    node.finish();
}

#[test]
fn prune_removes_what_has_ended_and_nothing_else() {
    let node = node_with_image();
    node.ctr(["c", "create", IMAGE, "ended"]).ok();
    node.ctr(["run", "-d", "--null-io", IMAGE, "alive", "sleep", "1000"]).ok();
    node.ctr(["prune", "--all"]).fails_with("--force");
    assert_eq!(node.ctr(["prune", "--all", "--dry-run"]).ok(), "container ended\n");
    assert_eq!(node.ctr(["prune", "--all", "--force"]).ok(), "container ended\n");
    assert_eq!(node.ctr(["c", "ls", "-q"]).ok(), "alive\n");
    node.ctr(["stop", "-t", "0s", "--rm", "alive"]).ok();
    assert_eq!(node.ctr(["prune", "--all", "--force"]).ok(), format!("image {IMAGE}\n"));
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    node.finish();
}

#[test]
fn inspect_and_stats_tell_about_what_runs() {
    let node = node_with_image();
    node.ctr(["run", "-d", "--null-io", IMAGE, "box", "sleep", "1000"]).ok();
    let about: Value = serde_json::from_str(&node.ctr(["inspect", "box", IMAGE]).ok()).unwrap();
    assert_eq!(about[0]["container"]["task"]["status"], "running");
    assert_eq!(about[0]["container"]["spec"]["process"]["args"][0], "sleep");
    assert_eq!(about[1]["image"]["type"], "application/vnd.oci.image.manifest.v1+json");
    node.ctr(["inspect", "nope"]).fails_with("not found");
    let args = ["stats", "--once", "--interval", "10ms", "--format", "json"];
    let stats: Value = serde_json::from_str(&node.ctr(args).ok()).unwrap();
    assert_eq!((stats[0]["container"].as_str(), stats[0]["pids"].as_str()), (Some("box"), Some("1")));
    node.ctr(["stop", "-t", "0s", "--rm", "box"]).ok();
    node.finish();
}

#[test]
fn check_tells_what_is_missing() {
    let scratch = Scratch::new();
    let checked = run(ctr(&scratch.join("nope"), &["check", "--format", "json"]));
    assert_eq!(checked.code, Some(1), "without a daemon something is missing: {checked:?}");
    let list: Value = serde_json::from_str(&checked.stdout).unwrap();
    let state = |what: &str| {
        let found = list.as_array().unwrap().iter().find(|one| one["what"] == what).cloned();
        found.unwrap_or_else(|| panic!("{what}: {list}"))["state"].as_str().unwrap().to_owned()
    };
    assert_eq!((state("kernel").as_str(), state("overlay").as_str()), ("ok", "ok"));
    assert_eq!(state("daemon"), "missing");
}

#[test]
fn a_container_whose_output_cannot_be_written_runs_to_its_end() {
    let node = node_with_image();
    let script = "dd if=/dev/zero bs=1024 count=1000 2>/dev/null";
    let mut command = node.ctr_command(["run", "--rm", IMAGE, "full", "sh", "-c", script]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "ctr: write /dev/stdout: no space left on device\n");
    assert_eq!(node.ctr(["c", "ls", "-q"]).ok(), "", "--rm removes it all the same");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = node.ctr_command(["run", IMAGE, "gone", "yes"]);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0), "{output:?}");
    node.ctr(["t", "rm", "-f", "gone"]).ok();
    node.ctr(["c", "rm", "gone"]).ok();
    node.finish();
}

#[test]
fn signals_reach_the_process_of_a_container() {
    let node = node_with_image();
    let script = "trap 'echo one' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let running = node.ctr_running(["run", "--rm", IMAGE, "told", "sh", "-c", script]);
    let mut seen = String::new();
    let mut wait_for = |word: &str| {
        while !seen.contains(word) {
            seen.push_str(&running.next_output(Duration::from_secs(20)).unwrap());
        }
    };
    wait_for("ready");
    let pid = rustix::process::Pid::from_raw(running.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    wait_for("one");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(running.finish().code, Some(7));
    node.finish();
}

#[test]
fn an_image_that_was_not_unpacked_is_unpacked_and_kept_when_it_runs() {
    let node = Node::start();
    let archive = node.join("image.tar");
    ImageBuilder::busybox().build().save(&archive, IMAGE).unwrap();
    node.ctr(["images", "import", "--no-unpack", archive.to_str().unwrap()]).ok();
    assert_eq!(node.ctr(["snapshots", "ls", "-q"]).ok(), "");
    assert_eq!(node.ctr(["run", "--rm", IMAGE, "a", "echo", "ran"]).ok(), "ran\n");
    // The collector runs with the end of a lease.
    let lease = node.ctr(["leases", "create"]).ok();
    node.ctr(["leases", "rm", "--sync", lease.trim()]).ok();
    assert_eq!(node.ctr(["snapshots", "ls", "-q"]).ok().lines().count(), 1);
    node.finish();
}

#[test]
fn a_specification_is_written_down_and_limits_hold() {
    let node = node_with_image();
    let file = node.join("dump.json");
    let dump = file.to_str().unwrap();
    let args = ["run", "--rm", "--rlimit-nofile", "100:200", "--dump-config", dump, IMAGE, "a", "sh", "-c"];
    let limits = node.ctr(args.into_iter().chain(["ulimit -S -n; ulimit -H -n"])).ok();
    assert_eq!(limits, "100\n200\n");
    let spec: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(spec["process"]["rlimits"][0]["soft"], 100);
    node.ctr(["run", "--rlimit-nofile", "x", IMAGE, "a"]).fails_with("invalid rlimit");
    node.finish();
}

#[test]
fn profiles_are_copied_from_the_debug_socket() {
    let scratch = Scratch::new();
    let path = scratch.join("debug.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nprofile").unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    });
    let mut command = Command::new(program());
    command.args(["pprof", "-d"]).arg(&path).args(["profile", "-s", "3s"]);
    assert_eq!(run(command).ok(), "profile");
    let request = served.join().unwrap();
    assert!(request.starts_with("GET /debug/pprof/profile?seconds=3&debug=0 HTTP/1.0\r\n"), "{request}");
}

#[test]
fn kubernetes_archives_need_the_plugin() {
    let node = Node::start();
    fails_in_one_line(node.ctr(["cri", "load", "/nope.tar"]), "failed to load image");
    node.finish();
}

#[test]
fn standard_input_that_is_closed_is_no_trouble() {
    let node = node_with_image();
    let finished = Running::start(node.ctr_command(["run", "--rm", IMAGE, "a", "cat"]), Some(b"")).finish();
    assert_eq!(finished.ok(), "");
    node.finish();
}
