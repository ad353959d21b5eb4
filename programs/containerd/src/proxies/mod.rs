//! Parts in other processes, behind sockets of their own (`[proxy_plugins.<id>]`): the domain's traits, spoken
//! over gRPC.

mod content;
mod diff;
mod load;
mod sandbox;
mod shims;
mod snapshots;

pub use load::{blobs, controllers, differs, snapshotters};
pub use shims::Shims;

use std::io;
use std::path::PathBuf;

use corten_api::keys::{LEASE, NAMESPACE};
use corten_types::{Context, Error, Mount, Result, ResultExt};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// The way to a process. It is taken with the first call, and again after it was lost.
#[derive(Clone, Debug)]
pub struct Connection {
    address: PathBuf,
    channel: Channel,
}

impl Connection {
    /// To a socket's path, which may begin with `unix://`. Within a runtime.
    pub fn new(address: &str) -> Self {
        let address = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let path = address.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        // The name only fills a header.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self { address, channel }
    }

    fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// What a call failed with; that nobody is there is told in the original's words.
    fn error(&self, status: &Status) -> Error {
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let words = error.to_string().to_lowercase();
                let words = words.split(" (os error").next().unwrap_or_default();
                return Error::unavailable(format!(
                    "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {words}\"",
                    self.address.display()
                ));
            }
            cause = error.source();
        }
        match status.code() {
            // A connection that breaks during a call.
            Code::Unknown | Code::Cancelled | Code::Internal
                if std::error::Error::source(status).is_some() =>
            {
                Error::unavailable(format!("{}: {}", self.address.display(), status.message()))
            }
            _ => corten_api::from_status(status),
        }
    }
}

/// A call with the namespace and the lease of its caller.
fn request<T>(ctx: Option<&Context>, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let Some(ctx) = ctx else { return Ok(request) };
    let lease = ctx.lease.as_deref();
    for (key, value) in [(NAMESPACE, Some(ctx.namespace.as_str())), (LEASE, lease)] {
        if let Some(value) = value {
            let value = value.parse::<AsciiMetadataValue>();
            let value = value.map_err(|_| Error::invalid_argument("malformed header")).context(key)?;
            request.metadata_mut().insert(key, value);
        }
    }
    Ok(request)
}

fn mounts(mounts: Vec<corten_api::types::Mount>) -> Vec<Mount> {
    mounts.into_iter().map(Mount::from).collect()
}

/// A mask of these paths; nothing for all.
fn mask(paths: Vec<String>) -> Option<prost_types::FieldMask> {
    (!paths.is_empty()).then_some(prost_types::FieldMask { paths })
}
