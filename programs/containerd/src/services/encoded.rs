//! `Containers.List` beside the generated server: its answer comes encoded, so that no record is decoded only to
//! be encoded again.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use corten_api::services::containers::ListContainersRequest;
use http::{Request, Response};
use prost::bytes::BufMut;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{MessageLimits, Services};

const LIST: &str = "/containerd.services.containers.v1.Containers/List";

/// The generated server of containers, but for `List`.
#[derive(Clone)]
pub struct EncodedList<S> {
    inner: S,
    services: Arc<Services>,
    limits: MessageLimits,
}

impl<S> EncodedList<S> {
    pub fn new(inner: S, services: Arc<Services>, limits: MessageLimits) -> Self {
        Self { inner, services, limits }
    }
}

impl<S: NamedService> NamedService for EncodedList<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for EncodedList<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != LIST {
            return Box::pin(self.inner.call(request));
        }
        let (list, limits) = (List(self.services.clone()), self.limits);
        Box::pin(async move {
            let mut grpc =
                Grpc::new(Encoded).apply_max_message_size_config(Some(limits.receive), Some(limits.send));
            Ok(grpc.unary(list, request).await)
        })
    }
}

struct List(Arc<Services>);

impl UnaryService<ListContainersRequest> for List {
    type Response = Vec<u8>;
    type Future = Ready<Result<tonic::Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: tonic::Request<ListContainersRequest>) -> Self::Future {
        ready(self.0.list_encoded(request).map(tonic::Response::new))
    }
}

/// Decodes requests, and sends answers that are encoded already.
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = ListContainersRequest;
    type Encoder = Self;
    type Decoder = <ProstCodec<(), ListContainersRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<(), ListContainersRequest>::default().decoder()
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        buffer.put_slice(&message);
        Ok(())
    }
}
