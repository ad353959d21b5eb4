//! HTTP to one host: connections are dialled when needed, kept while an operation runs, and few.
//!
//! HTTP/2 is spoken only with hosts that refuse HTTP/1.1: several layers over one connection share its flow-control
//! window and its congestion, and a registry answers the same over HTTP/1.1.

mod body;
mod client;
mod dial;
mod error;
mod limits;
mod proxy;
mod tls;
mod upload;

pub(crate) use body::Body;
pub(crate) use client::{Client, ClientOptions, Request, Response};
pub(crate) use error::{Transport, TransportKind};
pub use limits::Limits;
pub(crate) use upload::Upload;
pub use upload::{BlobSource, Sent};
