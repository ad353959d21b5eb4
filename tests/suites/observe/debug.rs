//! The debug socket, as Go's tools and `ctr pprof` use it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_tests::{Node, Peers, command, eventually};
use serde_json::Value;

use crate::{PATIENCE, get_unix};

fn node() -> (Node, PathBuf) {
    let node = Node::builder().config("version = 2\n[debug]\naddress = '$NODE/debug.sock'\n").start();
    let socket = node.join("debug.sock");
    (node, socket)
}

/// A profile's bytes, and the strings in them: enough to see what it is about.
fn profile(bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut message).expect("gzip");
    message
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn pprof(program: &Path, socket: &Path, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(["pprof", "--debug-socket"]).arg(socket).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn pages_are_where_go_has_them() {
    let (node, socket) = node();
    let variables: Value = serde_json::from_slice(&get_unix(&socket, "/debug/vars").body).unwrap();
    assert!(variables["memstats"]["HeapAlloc"].as_u64().unwrap() > 10_000, "{variables}");
    assert!(variables["cmdline"][0].as_str().unwrap().ends_with("containerd"), "{variables}");
    let words = get_unix(&socket, "/debug/pprof/cmdline").text();
    assert!(words.split('\0').any(|word| word == "--address"), "{words}");
    let moved = get_unix(&socket, "/debug/pprof");
    assert!(moved.status() == 301 && moved.head.contains("/debug/pprof/"), "{}", moved.head);
    assert!(get_unix(&socket, "/debug/pprof/").text().contains("<a href='goroutine'>"));
    assert!(get_unix(&socket, "/debug/pprof/symbol").text().starts_with("num_symbols: 1\n"));
    for (path, text) in [
        ("/", "404 page not found\n"),
        ("/v1/metrics", "404 page not found\n"),
        ("/debug/pprof/x", "Unknown profile\n"),
    ] {
        let answer = get_unix(&socket, path);
        assert_eq!((answer.status(), answer.text().as_str()), (404, text), "{path}");
    }
    assert_eq!(get_unix(&socket, "/debug/pprof/profile?seconds=100000").status(), 400);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    node.finish();
    assert!(!socket.exists());
}

#[test]
fn both_ctr_get_profiles_of_the_daemon() {
    let (node, socket) = node();
    let ours = corten_tests::peers::programs().join("ctr");
    let theirs = Peers::find().containerd_2_1().join("ctr");
    // Something to be seen.
    let busy = node.ctr_running(["events"]);
    for program in [&ours, &theirs] {
        let heap = profile(&pprof(program, &socket, &["heap"]));
        assert!(has(&heap, "inuse_space") && has(&heap, "alloc_objects"));
        let tasks = eventually("the open call is listed", PATIENCE, || {
            let text = String::from_utf8(pprof(program, &socket, &["goroutines"])).unwrap();
            text.contains("containerd.services.events.v1.Events/Subscribe").then_some(text)
        });
        assert!(tasks.contains("tokio") && tasks.contains("workers"), "{tasks}");
        assert!(profile(&pprof(program, &socket, &["block"])).len() > 10);
        assert!(has(&profile(&pprof(program, &socket, &["threadcreate"])), "threadcreate"));
        let trace: Value =
            serde_json::from_slice(&pprof(program, &socket, &["trace", "--seconds", "1s"])).unwrap();
        assert!(trace["traceEvents"].is_array());
        let cpu = profile(&pprof(program, &socket, &["profile", "--seconds", "1s"]));
        assert!(has(&cpu, "nanoseconds"));
    }
    drop(busy);
    let drawn = node.join("profile.svg");
    let file = drawn.to_str().unwrap();
    assert_eq!(pprof(&ours, &socket, &["heap", "--flame-graph", file]), b"");
    let drawn = std::fs::read_to_string(drawn).unwrap();
    assert!(
        drawn.starts_with("<svg ") && drawn.contains("inuse_space: ") && drawn.ends_with("</svg>\n"),
        "{drawn}"
    );
    let text = get_unix(&socket, "/debug/pprof/heap?debug=1").text();
    assert!(text.starts_with("heap profile: "), "{text}");
    node.finish();
}

#[test]
fn a_profile_of_a_busy_daemon_names_its_functions() {
    let (node, socket) = node();
    let looking = std::thread::spawn({
        let socket = socket.clone();
        move || get_unix(&socket, "/debug/pprof/profile?seconds=3")
    });
    while !looking.is_finished() {
        node.ctr(["plugins", "ls"]).ok();
    }
    let answer = looking.join().unwrap();
    assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(&answer.body));
    let cpu = profile(&answer.body);
    assert!(has(&cpu, "tokio"), "{}", String::from_utf8_lossy(&cpu));
    assert!(has(&cpu, "tokio-rt-worker"), "threads have names");
    node.finish();
}

#[test]
fn a_daemon_without_a_debug_socket_has_none() {
    let node = Node::start();
    let mut command = Command::new(corten_tests::peers::programs().join("ctr"));
    command.args(["pprof", "--debug-socket"]).arg(node.join("debug.sock")).arg("heap");
    command::run(command).fails_with("dial unix");
    node.finish();
}
