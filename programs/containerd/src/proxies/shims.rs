//! Shims that speak gRPC. What they are asked and what they answer passes through here as bytes.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use corten_api::keys::NAMESPACE;
use corten_runtime::{GrpcShim, GrpcShims};
use corten_types::{Error, ErrorClass, Result, ResultExt};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// The way to them.
#[derive(Debug)]
pub struct Shims;

#[async_trait::async_trait]
impl GrpcShims for Shims {
    async fn connect(&self, path: &Path) -> Result<Arc<dyn GrpcShim>> {
        let stream =
            UnixStream::connect(path).await.with_context(|| format!("dial unix {}", path.display()))?;
        let (over, ended) = watch::channel(());
        // There is one connection: when it is lost the shim is.
        let mut stream = Some(TokioIo::new(Watched { stream, _over: over }));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
            async move { stream }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Error::unavailable(format!("{}: {error}", path.display())))?;
        Ok(Arc::new(Shim { channel: Mutex::new(Some(channel)), ended }))
    }
}

#[derive(Debug)]
struct Shim {
    channel: Mutex<Option<Channel>>,
    /// Its sender goes with the stream.
    ended: watch::Receiver<()>,
}

#[async_trait::async_trait]
impl GrpcShim for Shim {
    async fn call(
        &self,
        path: String,
        message: Vec<u8>,
        namespace: Option<String>,
        timeout: Option<Duration>,
    ) -> Option<Result<Vec<u8>>> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let mut request = Request::new(message);
        if let Some(Ok(namespace)) = namespace.map(|namespace| namespace.parse()) {
            request.metadata_mut().insert(NAMESPACE, namespace);
        }
        let begun = Instant::now();
        let is_late = || timeout.is_some_and(|timeout| begun.elapsed() >= timeout);
        let too_late = || Some(Err(Error::new(ErrorClass::DeadlineExceeded, "")));
        let call = async {
            if let Some(timeout) = timeout {
                request.set_timeout(timeout);
            }
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let path = path.parse().map_err(|_| Status::internal("a path of nonsense"))?;
            client.unary(request, path, Bytes).await.map(tonic::Response::into_inner)
        };
        let late = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = call => match answer {
                // Its own timer ends a call as if the connection had ended.
                Err(_) if is_late() => too_late(),
                Err(status) if is_of_connection(&status) => None,
                answer => Some(answer.map_err(|status| corten_api::from_status(&status))),
            },
            () = self.closed() => None,
            () = late => too_late(),
        }
    }

    fn close(&self) {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn closed(&self) -> BoxFuture<'static, ()> {
        let mut ended = self.ended.clone();
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    }
}

/// Whether the connection failed rather than the call.
fn is_of_connection(status: &Status) -> bool {
    let lost = matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Cancelled | Code::Internal);
    lost && std::error::Error::source(status).is_some()
}

/// A stream whose end can be waited for.
struct Watched {
    stream: UnixStream,
    _over: watch::Sender<()>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        into.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> std::result::Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
