//! The harness of the end-to-end tests: a [`Node`] is a real daemon in a private folder, with its
//! own sockets, namespace and cgroups; a [`Registry`] is a real registry on loopback; an
//! [`ImageBuilder`] makes real images for it. Whatever happens in a test, dropping these ends the
//! processes that they started, by pid, and takes their mounts, cgroups and files away;
//! [`Node::finish`] fails a test that left anything behind.
//!
//! The harness hides set-up, never the behaviour under test.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub mod archive;
pub mod client;
pub mod command;
pub mod disk;
pub mod dynamic;
pub mod engine;
pub mod image;
pub mod leftovers;
pub mod node;
pub mod peers;
pub mod registry;
pub mod remote;
pub mod scratch;
pub mod scripted;
pub mod session;
pub mod snapshotter;
pub mod terminal;
pub mod token_server;
pub mod tree;
pub mod words;

pub use archive::Entry;
pub use client::Client;
pub use command::{Finished, Running};
pub use corten_types::Digest;
pub use dynamic::{Call, Caller};
pub use engine::Engine;
pub use image::{Blob, Image, ImageBuilder, Layer};
pub use node::{Node, NodeBuilder};
pub use peers::Peers;
pub use registry::{Guard, Registry};
pub use scratch::Scratch;
pub use scripted::{Fault, ScriptedRegistry};
pub use session::Session;
pub use terminal::Terminal;
pub use token_server::TokenServer;

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value; for what the tested programs do in their own time.
///
/// # Panics
/// After `patience`, with `what`.
pub fn eventually<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {patience:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a cgroup whose processes have just been ended.
fn leftovers_remove(cgroup: &std::path::Path) {
    for _ in 0..50 {
        if std::fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
