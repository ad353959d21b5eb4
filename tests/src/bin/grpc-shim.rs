//! A shim for tests that speaks gRPC: it stands before ours, which lies beside it, and passes on what it is asked.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use corten_api::bootstrap::BootstrapResult;
use corten_api::keys::NAMESPACE;
use corten_tests::dynamic::Raw;
use corten_ttrpc::{CallOptions, Client};
use prost::Message;
use prost::encoding::{DecodeContext, WireType};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ours = std::env::current_exe().unwrap().with_file_name("containerd-shim-runc-v2");
    match args.last().map(String::as_str) {
        Some("start") => start(&args, &ours),
        Some("serve") => serve(Path::new(&args[0]), Path::new(&args[1])),
        _ => panic!("{}", Command::new(ours).args(&args).exec()),
    }
}

#[allow(clippy::zombie_processes, reason = "it outlives this process, whose children init collects")]
fn start(args: &[String], ours: &Path) {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    let mut child =
        Command::new(ours).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let said = child.wait_with_output().unwrap().stdout;
    let address = match serde_json::from_slice::<serde_json::Value>(&said) {
        Ok(json) => json["address"].as_str().unwrap().to_owned(),
        Err(_) => BootstrapResult::decode(said.as_slice()).unwrap().address,
    };
    let behind = PathBuf::from(address.trim_start_matches("unix://"));
    let socket = behind.with_extension("grpc");
    let mut command = Command::new(std::env::current_exe().unwrap());
    // The arguments name the node that this belongs to.
    command.arg(&socket).arg(&behind).args(&args[..args.len() - 1]).arg("serve").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    corten_tests::eventually("the server listens", Duration::from_secs(30), || {
        std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)
    });
    print!("{{\"version\":3,\"address\":\"unix://{}\",\"protocol\":\"grpc\"}}", socket.display());
}

fn serve(socket: &Path, behind: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(behind).await.unwrap();
        std::fs::remove_file(socket).ok();
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let over = client.closed();
        tonic::transport::Server::builder()
            .add_service(Facade(client))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), over)
            .await
            .unwrap();
    });
    std::fs::remove_file(socket).ok();
}

#[derive(Clone)]
struct Facade(Client);

impl NamedService for Facade {
    const NAME: &'static str = "containerd.task.v3.Task";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<http::Request<Body>> for Facade {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let pass = Pass { client: self.0.clone(), method };
        Box::pin(async move { Ok(Grpc::new(Raw).unary(pass, request).await) })
    }
}

struct Pass {
    client: Client,
    method: String,
}

impl UnaryService<Bytes> for Pass {
    type Response = Bytes;
    type Future = Answer<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (client, method) = (self.client.clone(), self.method.clone());
        Box::pin(async move {
            let namespace = request.metadata().get(NAMESPACE).and_then(|value| value.to_str().ok());
            let options = CallOptions { namespace: namespace.map(str::to_owned), timeout: None };
            let message = Unread(request.into_inner());
            let answer = client.call::<_, Unread>(Facade::NAME, &method, &message, options).await;
            answer.map(|answer| Response::new(answer.0)).map_err(corten_api::to_status)
        })
    }
}

/// A message as it is on the wire.
#[derive(Debug, Default)]
struct Unread(Bytes);

impl Message for Unread {
    fn encode_raw(&self, into: &mut impl BufMut) {
        into.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: WireType,
        _: &mut impl Buf,
        _: DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn decode(mut from: impl Buf) -> Result<Self, prost::DecodeError> {
        Ok(Self(from.copy_to_bytes(from.remaining())))
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
