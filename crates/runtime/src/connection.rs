//! A connection to a shim, in the protocol that it speaks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use corten_ttrpc::{CallOptions, Client};
use corten_types::{Error, Result};
use futures_util::future::BoxFuture;
use prost::Message;

/// How shims are reached that speak gRPC, which this crate does not.
#[async_trait::async_trait]
pub trait GrpcShims: Send + Sync {
    /// Connects to a unix socket.
    async fn connect(&self, path: &Path) -> Result<Arc<dyn GrpcShim>>;
}

/// A connection to one. It ends when the last owner drops it.
#[async_trait::async_trait]
pub trait GrpcShim: std::fmt::Debug + Send + Sync {
    /// Calls the method at a path (`/service/method`); answers the message that came back. Nothing when the connection is
    /// or becomes closed.
    async fn call(
        &self,
        path: String,
        request: Vec<u8>,
        namespace: Option<String>,
        timeout: Option<Duration>,
    ) -> Option<Result<Vec<u8>>>;

    /// Closes it; calls that wait for an answer get none.
    fn close(&self);

    /// Resolves when it is over. The future itself does not keep it open.
    fn closed(&self) -> BoxFuture<'static, ()>;
}

#[derive(Clone, Debug)]
pub(crate) enum Connection {
    Ttrpc(Client),
    Grpc(Arc<dyn GrpcShim>),
}

impl Connection {
    /// Calls a method; see [`Client::call`].
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        options: CallOptions,
    ) -> Result<R> {
        let shim = match self {
            Self::Ttrpc(client) => return client.call(service, method, request, options).await,
            Self::Grpc(shim) => shim,
        };
        let path = format!("/{service}/{method}");
        let answer = shim.call(path, request.encode_to_vec(), options.namespace, options.timeout).await;
        let answer = answer.unwrap_or_else(|| Err(Client::closed_error()))?;
        R::decode(answer.as_slice())
            .map_err(|error| Error::internal(format!("{service}/{method}: bad answer: {error}")))
    }

    /// Closes it for all clones.
    pub fn close(&self) {
        match self {
            Self::Ttrpc(client) => client.close(),
            Self::Grpc(shim) => shim.close(),
        }
    }

    /// Resolves when it is over. The future itself does not keep it open.
    pub fn closed(&self) -> BoxFuture<'static, ()> {
        match self {
            Self::Ttrpc(client) => Box::pin(client.closed()),
            Self::Grpc(shim) => shim.closed(),
        }
    }
}
