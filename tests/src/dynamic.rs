//! Calls of any method of any service, known only by its description: bytes in, bytes out.

use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use corten_api::keys::{LEASE, NAMESPACE};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// The descriptions of everything on the wire.
///
/// # Panics
/// When the descriptions are broken.
pub fn pool() -> DescriptorPool {
    DescriptorPool::decode(corten_api::DESCRIPTORS).unwrap()
}

/// All methods that a daemon serves over gRPC.
pub fn methods(pool: &DescriptorPool) -> Vec<MethodDescriptor> {
    let served = |name: &str| {
        (name.starts_with("containerd.services.") && !name.contains(".ttrpc."))
            || name == "grpc.health.v1.Health"
    };
    pool.services()
        .filter(|service| served(service.full_name()))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
}

/// Where a method is called: `/package.Service/Method`.
pub fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// One connection to a daemon.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
}

/// Headers of a call: namespace, lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct With<'a> {
    /// The namespace; `None` sends none.
    pub namespace: Option<&'a str>,
    /// The lease; `None` sends none.
    pub lease: Option<&'a str>,
}

impl Caller {
    /// A connection to the daemon at this socket, made with the first call. Needs a tokio runtime.
    pub fn new(address: &Path) -> Self {
        let address = address.to_owned();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move { tokio::net::UnixStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        });
        Self { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector) }
    }

    /// Begins a call. Every kind of call is a stream of messages each way on the wire.
    ///
    /// # Panics
    /// When a header or the path cannot be sent.
    pub fn call(&self, path: &str, with: With<'_>) -> Call {
        let (requests, receiver) = mpsc::unbounded_channel();
        let (sender, answers) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        for (key, value) in [(NAMESPACE, with.namespace), (LEASE, with.lease)] {
            if let Some(value) = value {
                request.metadata_mut().insert(key, value.parse().unwrap());
            }
        }
        let path = path.parse().unwrap();
        let mut grpc = Grpc::new(self.channel.clone())
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let task = tokio::spawn(async move {
            let status = async {
                grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
                let mut stream = grpc.streaming(request, path, Raw).await?.into_inner();
                while let Some(message) = stream.message().await? {
                    if sender.send(Answer::Message(message)).is_err() {
                        return Ok(());
                    }
                }
                Ok(())
            };
            let status: Result<(), Status> = status.await;
            let end = status.err().unwrap_or_else(|| Status::new(Code::Ok, ""));
            let _ = sender.send(Answer::End(end));
        });
        Call { requests: Some(requests), answers, task }
    }

    /// A whole call with one request: all messages that came, and the status.
    pub async fn once(&self, path: &str, with: With<'_>, request: Bytes) -> (Vec<Bytes>, Status) {
        let mut call = self.call(path, with);
        call.send(request);
        call.close();
        call.rest().await
    }
}

/// What a call receives.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A message.
    Message(Bytes),
    /// The end of the call.
    End(Status),
}

/// An open call. Dropping it cancels it.
#[derive(Debug)]
pub struct Call {
    requests: Option<mpsc::UnboundedSender<Bytes>>,
    answers: mpsc::UnboundedReceiver<Answer>,
    task: tokio::task::JoinHandle<()>,
}

impl Call {
    /// Sends a message; one to a call that has ended is lost.
    pub fn send(&self, message: Bytes) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(message);
        }
    }

    /// No more messages will be sent.
    pub fn close(&mut self) {
        self.requests = None;
    }

    /// What comes next.
    pub async fn next(&mut self) -> Answer {
        self.answers.recv().await.unwrap_or_else(|| Answer::End(Status::unknown("the call is over")))
    }

    /// All that comes until the end.
    pub async fn rest(&mut self) -> (Vec<Bytes>, Status) {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Answer::Message(message) => messages.push(message),
                Answer::End(status) => return (messages, status),
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.task.abort();
    }
}
