//! What no daemon can do without: calls whose answers are received and counted, but neither put together nor
//! decoded; a server that has its bytes in memory; flushes of a disk.

use std::convert::Infallible;
use std::fs::File;
use std::future::{Ready, ready};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::task::{Context, Poll};
use std::time::Instant;

use corten_tests::Client;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use prost::bytes::Bytes;
use tonic::body::Body;
use tower::{Service, ServiceExt};

/// Bytes of a message's prefix: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Makes a call with one request; answers the bytes of all messages that came, their prefixes included.
pub fn call(client: &Client, path: &'static str, request: &impl Message) -> usize {
    let mut body = vec![0; PREFIX];
    body[1..].copy_from_slice(&(request.encoded_len() as u32).to_be_bytes());
    request.encode(&mut body).unwrap();
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(body))))
        .unwrap();
    client.block_on(async {
        let mut service = client.service();
        let mut answer = service.ready().await.unwrap().call(request).await.unwrap().into_body();
        let mut count = 0;
        while let Some(frame) = answer.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => count += data.len(),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    assert_eq!(trailers.get("grpc-status").unwrap(), "0", "{trailers:?}");
                }
            }
        }
        count
    })
}

/// Answers every call by the same message, again and again.
#[derive(Clone)]
struct Repeat {
    message: Bytes,
    count: usize,
}

impl tonic::server::NamedService for Repeat {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

impl Service<http::Request<Body>> for Repeat {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let data = (0..self.count).map({
            let message = self.message.clone();
            move |_| Ok::<_, Infallible>(http_body::Frame::data(message.clone()))
        });
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("0"),
        )]);
        let end = std::iter::once(Ok(http_body::Frame::trailers(trailers)));
        let body = StreamBody::new(tokio_stream::iter(data.chain(end)));
        let answer =
            http::Response::builder().header("content-type", "application/grpc").body(Body::new(body));
        ready(Ok(answer.unwrap()))
    }
}

/// Serves messages of `size` bytes from memory at a socket, `count` for each call, as long as the process lives.
pub fn serve(socket: &Path, size: usize, count: usize) {
    let mut message = vec![0; PREFIX + size];
    message[1..PREFIX].copy_from_slice(&(size as u32).to_be_bytes());
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let connections = tokio_stream::wrappers::UnixListenerStream::new(listener);
            let service = Repeat { message: message.into(), count };
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(connections)
                .await
                .unwrap();
        });
    });
}

/// Milliseconds of each of `count` small writes to a file of this folder's disk that are flushed one by one.
pub fn flushes(folder: &Path, count: usize) -> Vec<f64> {
    let path = folder.join("flushes");
    let file = File::create(&path).unwrap();
    // The space is there, as in a database that is filled ahead.
    let page = [b'x'; 4096];
    for n in 0..count {
        file.write_all_at(&page, (n * page.len()) as u64).unwrap();
    }
    file.sync_all().unwrap();
    let flush = |n| {
        let begun = Instant::now();
        file.write_all_at(&page, (n * page.len()) as u64).unwrap();
        file.sync_data().unwrap();
        begun.elapsed().as_secs_f64() * 1000.0
    };
    let times = (0..count).map(flush).collect();
    std::fs::remove_file(&path).unwrap();
    times
}
