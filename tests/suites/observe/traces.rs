//! Spans of calls, as a collector gets them by OTLP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll};

use corten_tests::{Client, Node, eventually};
use prost::Message;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};

use crate::PATIENCE;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scopes>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Scopes {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    begun: u64,
    #[prost(fixed64, tag = "8")]
    ended: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(int64, tag = "3")]
    number: i64,
}

impl Span {
    fn attributes(&self) -> BTreeMap<&str, String> {
        let text = |value: &Value| match value.text.is_empty() {
            true => value.number.to_string(),
            false => value.text.clone(),
        };
        let pair = |one: &'_ Attribute| one.value.as_ref().map(text).unwrap_or_default();
        self.attributes.iter().map(|one| (one.key.as_str(), pair(one))).collect()
    }
}

/// A request that a collector got.
struct Request {
    line: String,
    headers: String,
    export: Export,
}

/// A collector on loopback, and what it gets. Its thread ends with the test.
fn collector() -> (u16, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                while let Some(request) = read(&stream) {
                    if sender.send(request).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, receiver)
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") {
        reader.read_line(&mut headers).ok().filter(|length| *length > 0)?;
        if headers == "\r\n" {
            break;
        }
    }
    let headers = headers.to_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut stream = stream;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
        .ok()?;
    Some(Request { line: line.trim().to_owned(), headers, export: Export::decode(body.as_slice()).ok()? })
}

/// The same by gRPC. Its threads end with the test.
#[derive(Clone)]
struct GrpcCollector(Sender<Export>);

impl NamedService for GrpcCollector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<Export> for GrpcCollector {
    type Response = Export;
    type Future = std::future::Ready<Result<tonic::Response<Export>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Export>) -> Self::Future {
        let (headers, _, export) = request.into_parts();
        assert_eq!(headers.get("x-key").unwrap(), "secret");
        let _ = self.0.send(export);
        std::future::ready(Ok(tonic::Response::new(Export::default())))
    }
}

impl Service<http::Request<tonic::body::Body>> for GrpcCollector {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("TraceService/Export"), "{}", request.uri());
        let service = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Export, Export>::default();
            Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
        })
    }
}

fn grpc_collector() -> (u16, Receiver<Export>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(GrpcCollector(sender));
            server.serve_with_incoming(incoming).await.unwrap();
        });
    });
    (port, receiver)
}

/// Collects spans until one of this name has come, with a parent or without; it is the last one.
fn until(requests: &Receiver<Request>, name: &str, parent: bool) -> Span {
    let mut spans: Vec<Span> = Vec::new();
    eventually(name, PATIENCE, || {
        while let Ok(request) = requests.try_recv() {
            assert_eq!(request.line, "POST /v1/traces HTTP/1.1");
            assert!(request.headers.contains("content-type: application/x-protobuf"), "{}", request.headers);
            assert!(request.headers.contains("x-key: secret"), "{}", request.headers);
            for resources in request.export.resources {
                let attributes = resources.resource.unwrap().attributes;
                let service = attributes.iter().find(|one| one.key == "service.name").unwrap();
                assert_eq!(service.value.as_ref().unwrap().text, "containerd");
                spans.extend(resources.scopes.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans.iter().find(|span| span.name == name && span.parent.is_empty() != parent).cloned()
    })
}

#[test]
fn each_call_is_a_span_with_method_namespace_and_status() {
    let (port, requests) = collector();
    let mut node = Node::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}"))
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    node.ctr(["containers", "info", "missing"]).fails(1);
    let get = "containerd.services.containers.v1.Containers/Get";
    let span = until(&requests, get, false);
    let attributes = span.attributes();
    assert_eq!(attributes["rpc.system"], "grpc");
    assert_eq!(attributes["rpc.service"], "containerd.services.containers.v1.Containers");
    assert_eq!(attributes["rpc.method"], "Get");
    assert_eq!(attributes["rpc.grpc.status_code"], "5", "not found");
    assert_eq!(attributes["containerd.namespace"], node.namespace());
    assert_eq!((span.kind, span.trace.len(), span.id.len(), span.parent.len()), (2, 16, 8, 0));
    assert!(span.begun > 1_600_000_000_000_000_000 && span.ended >= span.begun);

    // A caller's trace goes on.
    let client = Client::new(&node.address(), None);
    let mut request = tonic::Request::new(());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    let server = "containerd.services.introspection.v1.Introspection/Server";
    client.wait(client.introspection().server(request)).unwrap();
    let span = until(&requests, server, true);
    assert_eq!((span.trace[0], span.parent[7]), (0x0a, 0x31));

    // What waits is sent at the end.
    node.ctr(["namespaces", "ls"]).ok();
    node.stop_daemon();
    until(&requests, "containerd.services.namespaces.v1.Namespaces/List", false);
    node.start_daemon();
    node.finish();
}

#[test]
fn spans_go_by_grpc_too() {
    let (port, exports) = grpc_collector();
    let node = Node::builder()
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("http://127.0.0.1:{port}"))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    node.ctr(["namespaces", "ls"]).ok();
    eventually("a span of the call", PATIENCE, || {
        let scopes = exports.try_recv().ok()?.resources.into_iter().flat_map(|one| one.scopes);
        let mut spans = scopes.flat_map(|scope| scope.spans);
        spans.find(|span| span.name == "containerd.services.namespaces.v1.Namespaces/List").map(drop)
    });
    node.finish();
}

#[test]
fn a_collector_that_is_not_there_disturbs_nothing() {
    let node = Node::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{}", crate::free_port()))
        .env("OTEL_BSP_SCHEDULE_DELAY", "10")
        .start();
    for _ in 0..5 {
        node.ctr(["namespaces", "ls"]).ok();
    }
    eventually("it is said once", PATIENCE, || {
        node.log().contains("spans could not all be sent").then_some(())
    });
    assert_eq!(node.log().matches("spans could not all be sent").count(), 1);
    node.finish();
}
