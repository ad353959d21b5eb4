//! The supervisor alone, with this test in the daemon's place: every method in every state, streams of all kinds,
//! all dialects of its start, and what no honest daemon does.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod bad;
mod bootstrap;
mod lab;
mod methods;
mod stdio;
