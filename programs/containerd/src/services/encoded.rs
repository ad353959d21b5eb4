//! Methods whose answers come encoded, beside the generated servers: so no record is decoded only to be encoded
//! again, and a blob's bytes are sent from the memory that they were read into.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, Streaming};
use tonic::server::NamedService;
use tonic::{Extensions, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{MessageLimits, Services};

/// Bytes before each message: whether it is compressed, and its length.
pub const PREFIX: usize = 5;

/// Messages with their prefixes, cut anywhere.
pub type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// A method that takes one message.
pub trait Method: Clone + Send + 'static {
    const PATH: &'static str;
    type Request: Message + Default + 'static;

    fn answer(
        services: Services,
        request: tonic::Request<Self::Request>,
        limits: MessageLimits,
    ) -> impl Future<Output = Result<Messages, Status>> + Send;
}

/// What stands before a message of so many bytes.
pub fn prefix(length: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// A generated server, but for one method.
#[derive(Clone)]
pub struct Encoded<S, M> {
    inner: S,
    services: Services,
    limits: MessageLimits,
    method: std::marker::PhantomData<fn() -> M>,
}

impl<S, M> Encoded<S, M> {
    pub fn new(inner: S, services: Services, limits: MessageLimits) -> Self {
        Self { inner, services, limits, method: std::marker::PhantomData }
    }
}

impl<S: NamedService, M> NamedService for Encoded<S, M> {
    const NAME: &'static str = S::NAME;
}

impl<S, M: Method> Service<Request<Body>> for Encoded<S, M>
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
        if request.uri().path() != M::PATH {
            return Box::pin(self.inner.call(request));
        }
        let (services, limits) = (self.services.clone(), self.limits);
        Box::pin(async move {
            let answer = match decode(request, limits.receive).await {
                Ok(request) => M::answer(services, request, limits).await,
                Err(refused) => Err(refused),
            };
            Ok(answer.map_or_else(Status::into_http, respond))
        })
    }
}

/// The only message of a request.
async fn decode<T: Message + Default + 'static>(
    request: Request<Body>,
    limit: usize,
) -> Result<tonic::Request<T>, Status> {
    let (parts, body) = request.into_parts();
    if let Some(encoding) = parts.headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") {
        let encoding = encoding.to_str().unwrap_or_default();
        let text = format!("Content is compressed with `{encoding}` which isn't supported");
        return Err(Status::unimplemented(text));
    }
    let decoder = ProstCodec::<T, T>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(limit));
    let message = messages.message().await?.ok_or_else(|| Status::internal("Missing request message."))?;
    let metadata = tonic::metadata::MetadataMap::from_headers(parts.headers);
    Ok(tonic::Request::from_parts(metadata, Extensions::default(), message))
}

/// The messages as the body of an answer, and their status behind them.
fn respond(messages: Messages) -> Response<Body> {
    let mut messages = Some(messages);
    let frames = futures_util::stream::poll_fn(move |cx| {
        let Some(going_on) = &mut messages else { return Poll::Ready(None) };
        let end = match std::task::ready!(going_on.poll_next_unpin(cx)) {
            Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        messages = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
