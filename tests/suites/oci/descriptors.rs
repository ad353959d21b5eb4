//! Descriptors beside the standard streams.

use std::process::Command;

use corten_tests::command;
use serde_json::json;

use super::Lab;

/// Runs a command of the runtime by a shell that has opened more descriptors.
fn with_more(lab: &Lab, opened: &str, args: &[&str]) -> corten_tests::Finished {
    let command = lab.command(args);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut shell = Command::new("sh");
    shell.current_dir(lab.scratch.path()).args(["-c", &format!("{opened}; exec {}", line.join(" "))]);
    command::run(shell)
}

const OPENED: &str = "echo three > 3; echo four > 4; exec 3<3 4<4 5</dev/null";
const SHOW: &str = "cat <&3; cat <&4; readlink /proc/$$/fd/5; echo $LISTEN_FDS $LISTEN_PID";

#[test]
fn more_descriptors_are_passed_on_where_that_is_asked_for() {
    let seen = |lab: Lab| {
        let id = lab.id();
        lab.configure(&json!({}), SHOW);
        let ran = with_more(&lab, OPENED, &["run", "--preserve-fds", "2", &id]);
        lab.configure(&json!({}), "readlink /proc/$$/fd/3 /proc/$$/fd/4; echo none");
        let without = with_more(&lab, OPENED, &["run", &id]);
        lab.configure(&json!({}), "sleep 1000");
        let null = std::process::Stdio::null;
        let mut run = lab.command(&["run", "--detach", &id]);
        assert!(run.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
        let added = with_more(&lab, OPENED, &["exec", "--preserve-fds", "2", &id, "sh", "-c", SHOW]);
        let missing = with_more(&lab, "true", &["exec", "--preserve-fds", "99", &id, "true"]);
        assert!(
            missing.code != Some(0) && missing.stderr.contains("unable to stat preserved-fd"),
            "{missing:?}"
        );
        [ran, without, added].map(|one| (one.code, one.stdout))
    };
    let ours = seen(Lab::ours());
    assert_eq!(ours, seen(Lab::runc()));
    assert_eq!(ours[0].1, "three\nfour\n\n");
}

#[test]
fn sockets_that_systemd_has_opened_are_passed_on_and_told_of() {
    let seen = |lab: Lab| {
        lab.configure(&json!({}), SHOW);
        let ran =
            with_more(&lab, &format!("{OPENED}; export LISTEN_FDS=2 LISTEN_PID=$$"), &["run", &lab.id()]);
        let others =
            with_more(&lab, &format!("{OPENED}; export LISTEN_FDS=2 LISTEN_PID=1"), &["run", &lab.id()]);
        [ran, others].map(|one| (one.code, one.stdout))
    };
    let ours = seen(Lab::ours());
    assert_eq!(ours, seen(Lab::runc()));
    assert_eq!(ours[0].1, "three\nfour\n2 1\n");
}
