//! A real image from a real registry becomes a running, supervised container.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::Duration;

use corten_tests::{Image, ImageBuilder, Layer, Node, Registry, Running, eventually};

/// A node that has pulled busybox; answers the reference.
fn node_with_busybox() -> (Node, Registry, String) {
    let registry = Registry::start();
    let reference = registry.push(&ImageBuilder::busybox().build(), "lab/busybox:1.0");
    let node = Node::start();
    node.ctr(["images", "pull", "--plain-http", &reference]).ok();
    (node, registry, reference)
}

#[test]
fn output_and_exit_code_of_a_container_reach_the_caller() {
    let (node, _registry, image) = node_with_busybox();
    let output = node.ctr(["run", "--rm", &image, "one", "echo", "hello"]).ok();
    assert_eq!(output, "hello\n");
    let failed = node.ctr(["run", "--rm", &image, "two", "sh", "-c", "echo oops >&2; exit 42"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (Some(42), "oops\n"));
    let killed = node.ctr(["run", "--rm", &image, "three", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(killed.code, Some(137), "{killed:?}");
    assert_eq!(node.ctr(["containers", "ls", "-q"]).ok(), "", "--rm removes the container");
    assert!(!node.ctr(["snapshots", "ls"]).ok().contains("Active"), "and its snapshot");
    node.finish();
}

#[test]
fn standard_input_reaches_the_container_and_ends() {
    let (node, _registry, image) = node_with_busybox();
    let output = node.ctr_with_input(["run", "--rm", &image, "cat", "cat"], b"line one\nline two\n").ok();
    assert_eq!(output, "line one\nline two\n");
    node.finish();
}

#[test]
fn no_output_is_lost_when_the_process_ends_right_after_writing() {
    let (node, _registry, image) = node_with_busybox();
    let script = "dd if=/dev/zero bs=1024 count=20000 2>/dev/null | tr '\\0' x; echo end";
    let output = node.ctr(["run", "--rm", &image, "big", "sh", "-c", script]).ok();
    assert_eq!(output.len(), 20_000 * 1024 + 4);
    assert!(output.ends_with("xend\n"));
    node.finish();
}

#[test]
fn the_container_sees_its_own_namespaces_environment_mounts_and_limits() {
    let (node, _registry, image) = node_with_busybox();
    std::fs::create_dir(node.join("shared")).unwrap();
    std::fs::write(node.join("shared/file"), "from the host\n").unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", node.join("shared").display());
    let script = "echo pid $$; cat /mnt/file; echo env $COLOUR; hostname; touch /mnt/x 2>&1; true";
    let output = node
        .ctr(["run", "--rm", "--env", "COLOUR=rust", "--mount", &mount, &image, "limits", "sh", "-c", script])
        .ok();
    assert!(output.contains("pid 1\n"), "{output}");
    assert!(output.contains("from the host\n"), "{output}");
    assert!(output.contains("env rust\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    node.finish();
}

#[test]
fn memory_and_processor_time_are_limited() {
    let (node, _registry, image) = node_with_busybox();
    let limits = ["--memory-limit", "33554432", "--cpus", "0.5"];
    let [memory, bytes, cpus, share] = limits;
    node.ctr(["run", "-d", memory, bytes, cpus, share, &image, "limited", "sleep", "1000"]).ok();
    let (pid, _) = node.task("limited").unwrap();
    let cgroups = corten_cgroups::Cgroups::of(i32::try_from(pid).unwrap()).unwrap();
    let read = |folder: &std::path::Path, file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let (memory, cpu) = match (cgroups.controller("memory"), cgroups.controller("cpu")) {
        (Some(memory), Some(cpu)) => (read(memory, "memory.limit_in_bytes"), read(cpu, "cpu.cfs_quota_us")),
        _ => {
            let folder = cgroups.unified().unwrap();
            (read(folder, "memory.max"), read(folder, "cpu.max").replace(" 100000", ""))
        }
    };
    assert_eq!((memory.trim(), cpu.trim()), ("33554432", "50000"));
    node.ctr(["tasks", "rm", "--force", "limited"]).ok();
    node.ctr(["containers", "rm", "limited"]).ok();
    node.finish();
}

#[test]
fn memory_that_runs_out_is_told_before_the_end() {
    let (node, _registry, image) = node_with_busybox();
    let events = events_of(&node);
    // What cannot be written to swap either is killed for.
    let greedy = ["run", "--rm", "--memory-limit", "8388608", &image, "greedy", "tail", "/dev/zero"];
    assert_eq!(node.ctr(greedy).code, Some(137));
    let mut told = String::new();
    while !told.contains("/tasks/delete") {
        told.push_str(&events.next_output(Duration::from_secs(10)).expect("the story goes on"));
    }
    let position = |topic: &str| told.find(topic).unwrap_or_else(|| panic!("{topic}: {told}"));
    assert!(position("/tasks/oom") < position("/tasks/exit"), "{told}");
    drop(events);
    node.finish();
}

#[test]
fn the_network_is_the_hosts_only_when_asked_for() {
    let (node, _registry, image) = node_with_busybox();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    let show = ["readlink", "/proc/self/ns/net"];
    let own = node.ctr(["run", "--rm", &image, "own", show[0], show[1]]).ok();
    assert_ne!(own.trim(), host);
    let shared = node.ctr(["run", "--rm", "--net-host", &image, "host", show[0], show[1]]).ok();
    assert_eq!(shared.trim(), host);
    node.finish();
}

#[test]
fn a_terminal_is_a_terminal() {
    let (node, _registry, image) = node_with_busybox();
    // ctr itself needs a terminal for -t; script(1) of util-linux gives it one.
    let command =
        node.ctr_command(["run", "--rm", "-t", &image, "tty", "sh", "-c", "tty; stty size; echo $TERM"]);
    let line: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
        .collect();
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &format!("stty rows 33 cols 77; {}", line.join(" ")), "/dev/null"]);
    let output = corten_tests::command::run(script).ok();
    assert!(output.contains("/dev/pts/0") || output.contains("/dev/console"), "{output}");
    assert!(output.contains("33 77"), "{output}");
    assert!(output.contains("xterm"), "{output}");
    node.finish();
}

#[test]
fn a_detached_container_is_listed_entered_killed_and_removed() {
    let (node, _registry, image) = node_with_busybox();
    node.ctr(["run", "-d", &image, "box", "sleep", "1000"]).ok();
    let (pid, status) = node.task("box").unwrap();
    assert_eq!(status, "RUNNING");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(node.ctr(["tasks", "ps", "box"]).ok().contains(&pid.to_string()));
    let output = node.ctr(["tasks", "exec", "--exec-id", "e1", "box", "sh", "-c", "echo inside; exit 3"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(3), "inside\n"), "{output:?}");
    let echoed = node.ctr_with_input(["tasks", "exec", "--exec-id", "e2", "box", "cat"], b"in and out").ok();
    assert_eq!(echoed, "in and out");
    node.ctr(["containers", "rm", "box"]).fails_with("cannot delete a non stopped container");
    node.ctr(["tasks", "kill", "--signal", "SIGKILL", "box"]).ok();
    eventually("the task stops", Duration::from_secs(10), || {
        (node.task("box")?.1 == "STOPPED").then_some(())
    });
    node.ctr(["tasks", "rm", "box"]);
    node.ctr(["containers", "rm", "box"]).ok();
    assert!(node.tasks().is_empty());
    node.finish();
}

#[test]
fn attach_follows_the_output_and_answers_the_exit_code() {
    let (node, _registry, image) = node_with_busybox();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo tick; sleep 0.2; done; exit 5";
    node.ctr(["run", "-d", &image, "clock", "sh", "-c", script]).ok();
    let attached = node.ctr(["tasks", "attach", "clock"]);
    assert_eq!(attached.code, Some(5), "{attached:?}");
    assert!(attached.stdout.contains("tick\n"), "{attached:?}");
    node.ctr(["tasks", "rm", "clock"]);
    node.ctr(["containers", "rm", "clock"]).ok();
    node.finish();
}

/// A subscription is live only: the first event seen proves that it stands.
fn events_of(node: &Node) -> Running {
    let events = node.ctr_running(["events"]);
    eventually("events flow", Duration::from_secs(10), || {
        node.ctr(["namespaces", "create", "probe"]);
        node.ctr(["namespaces", "rm", "probe"]);
        events.next_output(Duration::from_millis(100))
    });
    events
}

#[test]
fn events_tell_the_story_of_a_container_in_order() {
    let (node, _registry, image) = node_with_busybox();
    let events = events_of(&node);
    node.ctr(["run", "--rm", &image, "story", "true"]).ok();
    let mut told = String::new();
    while !told.contains("/containers/delete") {
        told.push_str(&events.next_output(Duration::from_secs(10)).expect("the story goes on"));
    }
    let of_interest = |line: &&str| line.contains("story");
    let topics: Vec<&str> =
        told.lines().filter(of_interest).filter_map(|line| line.split(' ').nth(5)).collect();
    let position =
        |topic: &str| topics.iter().position(|t| *t == topic).unwrap_or_else(|| panic!("{topic}: {told}"));
    let order = [
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ];
    let positions: Vec<usize> = order.iter().map(|topic| position(topic)).collect();
    assert!(positions.is_sorted(), "{told}");
    drop(events);
    node.finish();
}

#[test]
fn an_image_archive_is_imported_and_runs() {
    let node = Node::start();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), "example.com/lab/box:2").unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    assert!(node.ctr(["images", "ls", "-q"]).ok().contains("example.com/lab/box:2\n"));
    assert_eq!(node.ctr(["run", "--rm", "example.com/lab/box:2", "b", "echo", "ok"]).ok(), "ok\n");
    node.ctr(["images", "rm", "--sync", "example.com/lab/box:2"]).ok();
    assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    assert_eq!(node.ctr(["content", "ls", "-q"]).ok(), "", "nothing refers to the content any more");
    node.finish();
}

#[test]
fn layers_are_stacked_in_order_with_their_whiteouts() {
    let registry = Registry::start();
    let image = ImageBuilder::busybox()
        .layer(
            Layer::new()
                .dir("data/", 0o755)
                .file("data/a", 0o644, b"old")
                .file("data/b", 0o644, b"b")
                .finish(),
        )
        .layer(Layer::new().file("data/a", 0o600, b"new").file("data/.wh.b", 0o644, b"").finish())
        .layer(Layer::new().dir("data2/", 0o755).file("data2/c", 0o644, b"c").finish())
        .build();
    let reference = registry.push(&image, "lab/layers:1");
    let node = Node::start();
    node.ctr(["images", "pull", "--plain-http", &reference]).ok();
    let output = node.ctr(["run", "--rm", &reference, "l", "sh", "-c", "cat /data/a; ls /data /data2"]).ok();
    assert_eq!(output, "new/data:\na\n\n/data2:\nc\n");
    node.finish();
}

#[test]
fn of_an_index_the_manifest_of_this_machine_is_pulled() {
    let registry = Registry::start();
    let ours = ImageBuilder::busybox().build();
    let other =
        ImageBuilder::new().layer(Layer::new().file("x", 0o644, b"x").finish()).architecture("s390x").build();
    let index = Image::index(vec![(other, "s390x"), (ours, corten_tests::image::host_architecture())]);
    let reference = registry.push(&index, "lab/multi:1");
    let node = Node::start();
    node.ctr(["images", "pull", "--plain-http", &reference]).ok();
    assert_eq!(node.ctr(["run", "--rm", &reference, "m", "echo", "ours"]).ok(), "ours\n");
    node.finish();
}

#[test]
fn many_containers_start_at_once() {
    let (node, _registry, image) = node_with_busybox();
    let running: Vec<_> = (0..20)
        .map(|n| node.ctr_running(["run", "--rm", &image, &format!("c{n}"), "echo", &n.to_string()]))
        .collect();
    for (n, run) in running.into_iter().enumerate() {
        assert_eq!(run.finish().ok(), format!("{n}\n"));
    }
    node.finish();
}

#[test]
fn the_daemon_serves_with_flags_alone_and_lists_its_plugins() {
    let node = Node::start();
    let version = node.ctr(["version"]).ok();
    assert!(version.contains("Client:") && version.contains("Server:"), "{version}");
    let plugins = node.ctr(["plugins", "ls"]).ok();
    let overlay = plugins.lines().find(|line| line.contains("overlayfs")).unwrap();
    assert!(
        overlay.contains("io.containerd.snapshotter.v1") && overlay.trim_end().ends_with("ok"),
        "{plugins}"
    );
    node.ctr(["namespaces", "create", "made", "colour=rust"]).ok();
    assert!(node.ctr(["namespaces", "ls"]).ok().contains("colour=rust"));
    node.ctr(["namespaces", "rm", "made"]).ok();
    node.finish();
}

#[test]
fn a_container_that_was_killed_while_it_was_paused_has_ended_once_it_goes_on() {
    let (node, _registry, image) = node_with_busybox();
    for n in 0..8 {
        let id = format!("paused-{n}");
        node.ctr(["run", "-d", &image, &id, "sleep", "1000"]).ok();
        node.ctr(["tasks", "pause", &id]).ok();
        // On cgroups of v1 the signal waits for the thaw: the end comes while the call still goes on.
        node.ctr(["tasks", "kill", "-s", "SIGKILL", &id]).ok();
        let resumed = node.ctr(["tasks", "resume", &id]);
        let ended = || {
            let list = node.ctr(["tasks", "ls"]).ok();
            list.lines().any(|line| line.starts_with(&id) && line.contains("STOPPED")).then_some(())
        };
        eventually(&format!("{id} ends; {resumed:?}"), Duration::from_secs(30), ended);
        node.ctr(["tasks", "rm", &id]);
        node.ctr(["containers", "rm", &id]).ok();
    }
    node.finish();
}
