//! Requests to one host and to wherever it redirects.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, LOCATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::dial::Dialer;
use super::upload::{Outgoing, Upload};
use super::{Body, Limits, Transport, TransportKind};
use crate::Trace;
use crate::hosts::Host;
use crate::url::Url;

const MAX_REDIRECTS: usize = 10;
/// A connection that lay unused for this long is not trusted any more.
const MAX_IDLE: Duration = Duration::from_secs(15);
const READ_BUFFER: usize = 256 << 10;
/// Bytes that an HTTP/2 peer may be ahead of us.
const WINDOW: u32 = 2 << 20;

/// What all requests of a client have in common.
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// Longest silence of a peer.
    pub stall: Duration,
    pub user_agent: HeaderValue,
    pub limits: Arc<Limits>,
    pub trace: Option<Trace>,
}

/// A request; its body is small and held in memory, or read from a source as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    /// Sent to wherever the request ends up.
    pub headers: HeaderMap,
    /// Sent only to the origin of `url`: credentials and configured lines.
    pub private: HeaderMap,
    pub body: Bytes,
    /// Sent instead of `body`.
    pub upload: Option<Upload>,
}

impl Request {
    pub fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            private: HeaderMap::new(),
            body: Bytes::new(),
            upload: None,
        }
    }
}

/// An answer, whose body is still to be read.
pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    /// Where the answer came from, after redirects.
    pub url: Url,
}

/// A connection that takes one request at a time, whatever it is spoken in.
pub(super) enum Sender {
    One(http1::SendRequest<Outgoing>),
    Two(http2::SendRequest<Outgoing>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    async fn exchange(&mut self, http: http::Request<Outgoing>) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(http).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(http).await
            }
        }
    }
}

/// Connections that wait for the next request, by origin.
#[derive(Default)]
pub(super) struct Pool(Mutex<HashMap<String, Vec<(Sender, Instant)>>>);

impl Pool {
    pub fn put(&self, origin: &str, sender: Sender) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(origin.to_owned()).or_default().push((sender, Instant::now()));
    }

    fn take(&self, origin: &str) -> Option<Sender> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(origin)?;
        senders.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < MAX_IDLE);
        senders.pop().map(|(sender, _)| sender)
    }
}

/// A client with the TLS options of one host.
pub(crate) struct Client {
    dialer: Dialer,
    pool: Arc<Pool>,
    options: ClientOptions,
}

impl Client {
    pub fn new(host: Host, options: ClientOptions) -> Self {
        Self { dialer: Dialer::new(host), pool: Arc::default(), options }
    }

    /// Sends a request and follows redirects of GET and HEAD. Credentials and configured header lines go
    /// to the origin of the request only.
    pub async fn send(&self, request: &Request) -> Result<Response, Transport> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(request, &url).await?;
            let location = match (&request.method, response.status.as_u16()) {
                (&Method::GET | &Method::HEAD, 301 | 302 | 303 | 307 | 308) => response.headers.get(LOCATION),
                // A blob's bytes are sent again, from their start.
                (&Method::PUT, 307 | 308) if request.upload.is_some() => response.headers.get(LOCATION),
                _ => None,
            };
            let Some(location) = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            else {
                return Ok(response);
            };
            url = url
                .join(&location)
                .map_err(|error| Transport::new(TransportKind::Other, format!("bad redirect: {error}")))?;
            response.body.finish().await;
        }
        Err(Transport::new(TransportKind::Other, format!("stopped after {MAX_REDIRECTS} redirects")))
    }

    async fn send_once(&self, request: &Request, url: &Url) -> Result<Response, Transport> {
        let permit = self.options.limits.acquire(&url.authority).await;
        let origin = format!("{}://{}", url.scheme.as_str(), url.authority);
        loop {
            let (mut sender, absolute, proxy_authorization, reused) = match self.pool.take(&origin) {
                Some(sender) => (sender, false, None, true),
                // On the heap: what it takes to connect is large, and rarely needed.
                None => Box::pin(self.open(url)).await?,
            };
            let is_http2 = matches!(sender, Sender::Two(_));
            let http = self.compose(request, url, absolute, is_http2, proxy_authorization)?;
            self.trace_request(&http, url);
            let exchange = Box::pin(sender.exchange(http));
            let exchange = patiently(self.options.stall, request.upload.as_ref(), exchange).await;
            let response = match exchange {
                Ok(Ok(response)) => response,
                // The peer may close an idle connection at any time; that says nothing about the request. What it has
                // of an upload by then, it has to be asked.
                Ok(Err(_)) if reused && request.upload.as_ref().is_none_or(|upload| upload.sent() == 0) => {
                    continue;
                }
                Ok(Err(error)) => return Err(Transport::http(&error)),
                Err(Stalled) => {
                    let text = format!("no answer for {:?}", self.options.stall);
                    return Err(Transport::new(TransportKind::Timeout, text));
                }
            };
            let (parts, incoming) = response.into_parts();
            self.trace_response(&parts, url);
            let pooled = (!absolute).then(|| (Arc::clone(&self.pool), origin, sender));
            let body = Body::new(incoming, &parts.headers, self.options.stall, pooled, permit);
            return Ok(Response { status: parts.status, headers: parts.headers, body, url: url.clone() });
        }
    }

    async fn open(&self, url: &Url) -> Result<(Sender, bool, Option<HeaderValue>, bool), Transport> {
        let connected = self.dialer.connect(url).await?;
        let io = TokioIo::new(connected.io);
        let failed = |error: hyper::Error| Transport::http(&error);
        let sender = if connected.is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let (sender, connection) = builder.handshake(io).await.map_err(failed)?;
            tokio::spawn(drive(connection));
            Sender::Two(sender)
        } else {
            let (sender, connection) =
                http1::Builder::new().max_buf_size(READ_BUFFER).handshake(io).await.map_err(failed)?;
            tokio::spawn(drive(connection));
            Sender::One(sender)
        };
        let authorization = connected.proxy.as_ref().and_then(|proxy| proxy.authorization.clone());
        Ok((sender, connected.proxy.is_some(), authorization, false))
    }

    fn compose(
        &self,
        request: &Request,
        url: &Url,
        absolute: bool,
        is_http2: bool,
        proxy_authorization: Option<HeaderValue>,
    ) -> Result<http::Request<Outgoing>, Transport> {
        let target = if absolute || is_http2 { url.to_string() } else { url.target.clone() };
        let invalid = |error: http::Error| Transport::new(TransportKind::Other, error.to_string());
        let mut http = http::Request::builder()
            .method(request.method.clone())
            .uri(target)
            .header(http::header::USER_AGENT, &self.options.user_agent)
            .body(Outgoing::new(request.body.clone(), request.upload.clone()))
            .map_err(invalid)?;
        let headers = http.headers_mut();
        if !is_http2 {
            headers
                .insert(HOST, HeaderValue::from_str(&url.authority).map_err(|error| invalid(error.into()))?);
        }
        let has_body = request.upload.as_ref().map_or(!request.body.is_empty(), |upload| upload.left() > 0);
        if !has_body && [Method::POST, Method::PUT, Method::PATCH].contains(&request.method) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let private = url.same_origin(&request.url).then_some(&request.private);
        for (name, value) in request.headers.iter().chain(private.into_iter().flatten()) {
            headers.append(name, value.clone());
        }
        if let Some(value) = proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        Ok(http)
    }

    fn trace_request(&self, http: &http::Request<Outgoing>, url: &Url) {
        if let Some(trace) = &self.options.trace {
            trace(&format!("> {} {url}\n{}", http.method(), lines('>', http.headers())));
        }
    }

    fn trace_response(&self, parts: &http::response::Parts, url: &Url) {
        if let Some(trace) = &self.options.trace {
            trace(&format!("< {} {url}\n{}", parts.status, lines('<', &parts.headers)));
        }
        for warning in parts.headers.get_all(http::header::WARNING) {
            tracing::warn!(host = %url.authority, warning = ?warning, "the registry warns");
        }
    }
}

/// Runs a connection; it ends by itself once the sender and the body are gone.
async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::trace!(%error, "connection ended");
    }
}

/// Nothing moved for too long.
struct Stalled;

/// Waits for an answer, longer as long as bytes of an upload go out.
async fn patiently<T>(
    stall: Duration,
    upload: Option<&Upload>,
    work: impl Future<Output = T>,
) -> Result<T, Stalled> {
    let mut work = std::pin::pin!(work);
    let mut sent = 0;
    loop {
        if let Ok(done) = timeout(stall, work.as_mut()).await {
            return Ok(done);
        }
        let now = upload.map_or(0, Upload::sent);
        if now == sent {
            return Err(Stalled);
        }
        sent = now;
    }
}

/// Header lines as they may be shown: without secrets.
fn lines(mark: char, headers: &HeaderMap) -> String {
    let mut text = String::new();
    for (name, value) in headers {
        let secret = [AUTHORIZATION, PROXY_AUTHORIZATION].contains(name);
        let value = if secret { "<redacted>".into() } else { String::from_utf8_lossy(value.as_bytes()) };
        let _ = writeln!(text, "{mark} {name}: {value}");
    }
    text
}
