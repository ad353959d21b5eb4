//! ttrpc: the small RPC protocol that daemon and shims speak over unix sockets (spec 02 §4.1).
//!
//! A [`Client`] multiplexes calls over one connection and is cheap to clone; a [`Server`] answers
//! requests concurrently. Both bound what a peer can make them hold: frames of at most 4 MiB, a
//! bounded number of requests in flight, a bounded amount of unsent bytes. Buffers are given back
//! when a connection is idle, so that an idle connection costs next to nothing in a shim.
//! Only unary calls are spoken; streams are answered with Unimplemented. Nothing here ever blocks a
//! thread, so a runtime of one thread is enough.

mod client;
mod frame;
mod message;
mod outgoing;
mod server;
mod service;
mod status;

pub use client::{CallOptions, Client};
pub use message::Status;
pub use server::Server;
pub use service::{Reply, Request, Service, reply};
pub use status::{error_of, status_of};

/// The largest payload of a frame, both ways.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Metadata key that carries the namespace of a call.
pub const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";
