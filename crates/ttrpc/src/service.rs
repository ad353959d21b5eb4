//! What a server serves.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use prost::Message;
use prost::bytes::Bytes;
use tokio::sync::watch;

use corten_types::{Error, ErrorClass, Result};

use crate::NAMESPACE_KEY;
use crate::message::{KeyValue, RequestMessage};

/// The future that answers a request: the encoded response message.
pub type Reply<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send + 'a>>;

/// Answers requests. Requests of one connection run concurrently, each in a task of its own, and
/// run to their end even if the client goes away: see [`Request::closed`].
pub trait Service: Send + Sync + 'static {
    /// Answers one request; [`Request::unknown`] if there is no such service or method.
    fn call(&self, request: Request) -> Reply<'_>;
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Full name of the service, as `containerd.task.v3.Task`.
    pub service: String,
    /// Name of the method.
    pub method: String,
    /// The encoded request message.
    pub payload: Bytes,
    /// How long the caller will wait from now on.
    pub timeout: Option<Duration>,
    metadata: Vec<KeyValue>,
    connection: Option<watch::Receiver<()>>,
}

impl Request {
    /// A request that came from no connection, for tests of services.
    #[must_use]
    pub fn new(service: &str, method: &str, payload: Bytes) -> Self {
        let (service, method) = (service.to_owned(), method.to_owned());
        Self { service, method, payload, timeout: None, metadata: Vec::new(), connection: None }
    }

    pub(crate) fn received(message: RequestMessage, connection: watch::Receiver<()>) -> Self {
        let timeout = u64::try_from(message.timeout_nano).ok().filter(|&nanos| nanos > 0);
        Self {
            service: message.service,
            method: message.method,
            payload: message.payload,
            timeout: timeout.map(Duration::from_nanos),
            metadata: message.metadata,
            connection: Some(connection),
        }
    }

    /// First value of a metadata key, which is compared in lower case.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|entry| entry.key.eq_ignore_ascii_case(key)).map(|entry| &*entry.value)
    }

    /// The namespace that the caller named, unchecked.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.metadata(NAMESPACE_KEY)
    }

    /// Resolves when the client has gone away, so that what only waits can stop waiting.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let connection = self.connection.clone();
        async move {
            match connection {
                // Nothing is ever sent: it changes only by the end of the connection.
                Some(mut connection) => while connection.changed().await.is_ok() {},
                None => std::future::pending().await,
            }
        }
    }

    /// Resolves when nobody waits for the answer any more: the client has gone away, or its time is over.
    pub fn expired(&self) -> impl Future<Output = ()> + Send + 'static {
        let (closed, timeout) = (self.closed(), self.timeout);
        async move {
            match timeout {
                Some(timeout) => drop(tokio::time::timeout(timeout, closed).await),
                None => closed.await,
            }
        }
    }

    /// The error for a method that there is not.
    #[must_use]
    pub fn unknown(&self) -> Error {
        Error::bare(ErrorClass::NotImplemented, format!("method {}", self.method))
    }

    /// The error for a service that there is not.
    #[must_use]
    pub fn unknown_service(&self) -> Error {
        Error::bare(ErrorClass::NotImplemented, format!("service {}", self.service))
    }
}

/// Decodes a request, runs `answer`, encodes what it returns.
///
/// # Errors
/// InvalidArgument for a payload that is not a `Q`; else what `answer` says.
pub async fn reply<Q, R, F, A>(payload: Bytes, answer: F) -> Result<Vec<u8>>
where
    Q: Message + Default,
    R: Message,
    F: FnOnce(Q) -> A,
    A: Future<Output = Result<R>>,
{
    let request = Q::decode(payload)
        .map_err(|error| Error::invalid_argument(format!("malformed request message: {error}")))?;
    Ok(answer(request).await?.encode_to_vec())
}
