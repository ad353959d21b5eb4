//! Calls whose answers are received and counted, but neither put together nor decoded: what is measured is the
//! daemon.

use corten_tests::Client;
use http_body_util::{BodyExt, Full};
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
