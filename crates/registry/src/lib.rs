//! The registry: a client of the OCI distribution protocol.
//!
//! It turns a reference into a descriptor, and a descriptor into bytes: through the hosts and mirrors
//! that `hosts.toml` names, with the credentials of the caller, resuming where a connection broke. It
//! holds nothing between operations: connections, trust anchors and tokens live as long as their
//! [`Resolver`]. It never sends credentials to another host than the one they are for, never reads a
//! manifest larger than the limit, and never waits without end for a silent peer. What it hands out is
//! not verified: the digest is checked by whoever stores it.

mod auth;
mod fetch;
pub mod hosts;
mod lanes;
mod push;
mod referrers;
mod request;
mod resolve;
mod resolver;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
mod url;

pub use auth::{Credential, CredentialRequest, Credentials, DockerConfig};
pub use fetch::{Download, Fetcher};
pub use hosts::{Capabilities, Host, Tls};
pub use push::{Pushed, Pusher};
pub use resolver::{Parts, Resolver, ResolverOptions, Trace};
pub use transport::{BlobSource, Limits, Sent};
pub use url::{Scheme, Url};

/// The largest manifest or index that is read, in bytes (spec 03 §6).
pub const MAX_MANIFEST_SIZE: i64 = 4 * 1048 * 1048;

/// What only the fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzz {
    /// Reads `WWW-Authenticate` lines; how many demands are in them.
    pub fn challenges(lines: &[String]) -> usize {
        crate::auth::challenges(lines)
    }
}
