//! Containers that are written down, and go on from that: where CRIU works.

use std::process::{Command, Stdio};
use std::time::Duration;

use corten_tests::{Finished, Peers, command, eventually};
use serde_json::json;

use super::Lab;

/// A command that finds CRIU: that of the host, or Debian's.
fn with_criu(mut command: Command) -> Command {
    let debians = Peers::find().root().join("criu");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([debians.join("usr/sbin")]);
    command.env("PATH", std::env::join_paths(folders).unwrap());
    let library = |folder: &str| debians.join(folder).join("lib/x86_64-linux-gnu");
    let own = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let libraries = std::env::split_paths(&own).chain([library("usr"), library("")]);
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
    command
}

fn quietly(mut command: Command) -> bool {
    // What goes on afterwards holds our pipes open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// A container that counts, in the network of the host: to write down one of its own takes a packet filter.
fn counting() -> Lab {
    let lab = Lab::ours();
    lab.configure(
        &json!({}),
        "i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /count; sleep 0.05; done",
    );
    let file = lab.scratch.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
    config["mounts"].as_array_mut().unwrap().retain(|one| one["type"] != "sysfs");
    std::fs::write(file, config.to_string()).unwrap();
    assert!(quietly(lab.command(&["run", "--detach", &lab.id()])));
    lab
}

fn count(lab: &Lab) -> u64 {
    let read = || std::fs::read_to_string(lab.scratch.join("rootfs/count")).ok()?.trim().parse().ok();
    eventually("it counts", Duration::from_secs(60), read)
}

fn checkpoint(lab: &Lab, command: impl Fn(Command) -> Command) -> Finished {
    let images = lab.scratch.join("images");
    let args = ["checkpoint", "--image-path", images.to_str().unwrap(), &lab.id()];
    command::run(command(lab.command(&args)))
}

#[test]
fn without_criu_that_is_told_and_the_container_goes_on() {
    let lab = counting();
    let without = |mut command: Command| {
        command.env("PATH", "/no/such");
        command
    };
    checkpoint(&lab, without)
        .fails_with("checkpoints need CRIU: exec: \\\"criu\\\": executable file not found in $PATH");
    let before = count(&lab);
    eventually("it goes on", Duration::from_secs(60), || (count(&lab) > before).then_some(()));
}

#[test]
fn a_container_goes_on_where_it_was_written_down() {
    let lab = counting();
    let mut check = with_criu(Command::new("criu"));
    check.arg("check");
    let written = checkpoint(&lab, with_criu);
    if !quietly(check) {
        // This kernel is not one for this CRIU. What it says is passed on, and nothing is lost.
        assert!(written.code != Some(0) && written.stderr.contains("criu failed"), "{written:?}");
        let before = count(&lab);
        eventually("it goes on", Duration::from_secs(60), || (count(&lab) > before).then_some(()));
        println!("CRIU does not work here: {}", written.stderr.trim());
        return;
    }
    assert_eq!(written.code, Some(0), "{written:?}");
    let id = lab.id();
    lab.call(&["delete", "--force", &id]);
    let before = count(&lab);
    let images = lab.scratch.join("images");
    let args = ["restore", "--detach", "--image-path", images.to_str().unwrap(), &id];
    assert!(quietly(with_criu(lab.command(&args))), "it is restored");
    eventually("it goes on", Duration::from_secs(60), || (count(&lab) > before).then_some(()));
    assert!(count(&lab) < before + 1000, "it has not begun anew, nor lost count");
    let state: serde_json::Value = serde_json::from_str(&lab.call(&["state", &id]).ok()).unwrap();
    assert_eq!(state["status"], "running");
}
