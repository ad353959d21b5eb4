//! Containers on networks, on a machine that is only a network namespace: daemon, shims and `ctr` live in it.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod cni;
mod commands;
mod containers;
mod lab;
mod robust;

use lab::{IMAGE, Lab};
