//! The OCI runtime specification: the default one and the edits that clients make to it, and with the
//! feature `runtime` the drivers that run it: the embedded runtime, or a program like runc.

pub mod seccomp;
pub mod spec;

#[cfg(feature = "runtime")]
pub mod runtime;
