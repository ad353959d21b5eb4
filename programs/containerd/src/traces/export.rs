//! Sends spans in batches, by HTTP or gRPC. A collector that does not answer loses a batch, never more memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corten_types::{Error, Result};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::{Channel, Endpoint};

use super::messages::{self, ExportRequest, ExportResponse, Span};
use super::settings::{Protocol, Settings};
use crate::VERSION;

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Longest answer that is read, bytes.
const MAX_ANSWER: usize = 64 << 10;
/// How often the log is told of the same trouble.
const RARELY: Duration = Duration::from_secs(60);

pub(super) enum Connection {
    Http(Box<Client<HttpConnector, Full<Bytes>>>),
    Grpc(Channel),
}

/// Sends until it is told to end or there is nobody who makes spans, then sends the rest.
pub(super) async fn run(
    settings: Settings,
    connection: Connection,
    mut spans: mpsc::Receiver<Span>,
    dropped: Arc<AtomicU64>,
    mut end: oneshot::Receiver<()>,
) {
    let mut complained: Option<Instant> = None;
    loop {
        let mut batch = Vec::new();
        let ending = tokio::select! {
            _ = &mut end => true,
            count = gather(&mut spans, &mut batch, &settings) => count == 0,
        };
        while batch.len() < settings.batch
            && let Ok(span) = spans.try_recv()
        {
            batch.push(span);
        }
        if batch.is_empty() && ending {
            return;
        }
        let sent = send(&connection, &settings, batch).await;
        let lost = dropped.load(Ordering::Relaxed);
        if (sent.is_err() || lost > 0) && complained.is_none_or(|at| at.elapsed() > RARELY) {
            let error = sent.err().map(|error| error.to_string()).unwrap_or_default();
            dropped.fetch_sub(lost, Ordering::Relaxed);
            tracing::warn!(endpoint = %settings.endpoint, dropped = lost, error, "spans could not all be sent");
            complained = Some(Instant::now());
        }
        if ending {
            // What else waits is sent in the next round.
            end = oneshot::channel().1;
        }
    }
}

/// Waits for a first span and then for others; answers how many there are, 0 if none can come.
async fn gather(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>, settings: &Settings) -> usize {
    let Some(first) = spans.recv().await else { return 0 };
    batch.push(first);
    let full = async {
        while batch.len() < settings.batch {
            match spans.recv().await {
                Some(span) => batch.push(span),
                None => return,
            }
        }
    };
    // Late or full, it is sent.
    let _ = tokio::time::timeout(settings.delay, full).await;
    batch.len()
}

/// Says how the collector is spoken to; it is connected to with the first batch.
///
/// # Errors
/// NotImplemented for TLS.
pub(super) fn connect(settings: &Settings) -> Result<Connection> {
    if settings.endpoint.scheme_str() == Some("https") {
        return Err(Error::not_implemented("OTLP over TLS"));
    }
    match settings.protocol {
        Protocol::Http => {
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(settings.timeout));
            Ok(Connection::Http(Box::new(Client::builder(TokioExecutor::new()).build(connector))))
        }
        Protocol::Grpc => {
            let endpoint = Endpoint::from_shared(settings.endpoint.to_string());
            let endpoint = endpoint.map_err(|error| Error::invalid_argument(error.to_string()))?;
            Ok(Connection::Grpc(endpoint.connect_timeout(settings.timeout).connect_lazy()))
        }
    }
}

async fn send(connection: &Connection, settings: &Settings, spans: Vec<Span>) -> Result<()> {
    let resource = settings.resource.iter().map(|(key, value)| messages::string(key, value)).collect();
    let request = ExportRequest {
        resource_spans: vec![messages::ResourceSpans {
            resource: Some(messages::Resource { attributes: resource }),
            scope_spans: vec![messages::ScopeSpans {
                scope: Some(messages::Scope { name: "containerd".into(), version: VERSION.into() }),
                spans,
            }],
        }],
    };
    let sending = async {
        match connection {
            Connection::Http(client) => post(client, settings, request).await,
            Connection::Grpc(channel) => call(channel.clone(), settings, request).await,
        }
    };
    match tokio::time::timeout(settings.timeout, sending).await {
        Ok(answer) => match answer?.partial_success.filter(|partial| partial.rejected_spans > 0) {
            Some(partial) => Err(Error::unknown(format!(
                "{} spans rejected: {}",
                partial.rejected_spans, partial.error_message
            ))),
            None => Ok(()),
        },
        Err(_) => Err(Error::unavailable("no answer in time")),
    }
}

async fn post(
    client: &Client<HttpConnector, Full<Bytes>>,
    settings: &Settings,
    message: ExportRequest,
) -> Result<ExportResponse> {
    let mut request = Request::post(settings.endpoint.clone())
        .body(Full::from(message.encode_to_vec()))
        .map_err(|error| Error::internal(error.to_string()))?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    for (name, value) in &settings.headers {
        request.headers_mut().insert(name, value.clone());
    }
    let response = client.request(request).await.map_err(|error| Error::unavailable(chain(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| Error::unavailable(error.to_string()))?.to_bytes();
    if !status.is_success() {
        return Err(Error::unknown(format!("unexpected status {status}")));
    }
    // Some collectors answer with something else.
    Ok(ExportResponse::decode(body).unwrap_or_default())
}

async fn call(channel: Channel, settings: &Settings, message: ExportRequest) -> Result<ExportResponse> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Error::unavailable(chain(&error)))?;
    let mut request = tonic::Request::new(message);
    for (name, value) in &settings.headers {
        if let (Ok(name), Ok(value)) = (
            tonic::metadata::AsciiMetadataKey::from_bytes(name.as_str().as_bytes()),
            tonic::metadata::AsciiMetadataValue::try_from(value.as_bytes()),
        ) {
            request.metadata_mut().insert(name, value);
        }
    }
    let path = Uri::from_static(METHOD).path_and_query().cloned();
    let path = path.ok_or_else(|| Error::internal("no path"))?;
    let codec = tonic_prost::ProstCodec::<ExportRequest, ExportResponse>::default();
    let answer = grpc.unary(request, path, codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| corten_api::from_status(&status))
}

/// An error with its causes: the outermost says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
