//! What `ctr` offers people beyond the original: files, logs and changes of containers, live views on a terminal,
//! completion in shells, and what `make install` places.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod bad;
mod checkpoints;
mod files;
mod install;
mod lists;
mod shells;
mod terminal;

use std::path::PathBuf;
use std::process::Command;

use corten_tests::{ImageBuilder, Node};

const IMAGE: &str = "example.com/lab/box:1";

fn program() -> PathBuf {
    corten_tests::peers::programs().join("ctr")
}

/// A daemon with an image of busybox.
fn node() -> Node {
    let node = Node::start();
    let archive = node.join("image.tar");
    ImageBuilder::busybox().build().save(&archive, IMAGE).unwrap();
    node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    node
}

fn sh(folder: &std::path::Path, script: &str) -> corten_tests::Finished {
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-c", script]);
    corten_tests::command::run(command)
}
