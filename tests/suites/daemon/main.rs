//! The daemon's configuration, command line and parts, where it matters beside Debian's containerd 2.1.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod command_line;
mod configuration;
mod options;
mod plugins;
mod transfer;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use corten_tests::{Finished, Peers, Running, command, peers};

/// Our daemon's program.
fn ours() -> PathBuf {
    peers::programs().join("containerd")
}

/// Debian's.
fn theirs() -> PathBuf {
    Peers::find().containerd_2_1().join("containerd")
}

/// Runs a daemon's program to its end.
fn run<S: AsRef<OsStr>>(program: &PathBuf, args: impl IntoIterator<Item = S>) -> Finished {
    let mut command = Command::new(program);
    command.args(args);
    command::run(command)
}

/// The same with standard input.
fn run_with_input(program: &PathBuf, args: &[&str], input: &[u8]) -> Finished {
    let mut command = Command::new(program);
    command.args(args).env("CORTEN_TEST", "{{id}}");
    Running::start(command, Some(input)).finish()
}
