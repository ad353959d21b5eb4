//! The built-in network, between network namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod bad;
mod machine;
mod plugins;
mod sweep;
mod traffic;

use machine::{Container, Machine, dial, serve};
