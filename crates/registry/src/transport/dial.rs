//! From an address to a connection: name lookup, TCP, proxy, TLS, and plain HTTP where the peer knows
//! no TLS (spec 03 §7).

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper_util::client::proxy::matcher::Matcher;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::proxy::{self, Proxy};
use super::{Transport, TransportKind, tls};
use crate::hosts::Host;
use crate::url::{Scheme, Url};

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one address may take before the next one is tried beside it.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// A connection, encrypted or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection ready for HTTP.
pub(super) struct Connected {
    pub io: Box<dyn Io>,
    /// The proxy that wants whole addresses in request lines.
    pub proxy: Option<Proxy>,
    /// Whether the peer speaks HTTP/2 on it.
    pub is_http2: bool,
}

/// Makes connections with the options of one host.
pub(super) struct Dialer {
    host: Host,
    dial_timeout: Duration,
    config: OnceCell<Arc<ClientConfig>>,
    matcher: Matcher,
    /// Authorities that turned out to speak no TLS.
    plain: Mutex<HashSet<String>>,
    /// Authorities that turned out to speak nothing but HTTP/2.
    http2: Mutex<HashSet<String>>,
}

impl Dialer {
    pub fn new(host: Host) -> Self {
        Self {
            dial_timeout: host.dial_timeout.unwrap_or(DIAL_TIMEOUT),
            host,
            config: OnceCell::new(),
            matcher: Matcher::from_env(),
            plain: Mutex::default(),
            http2: Mutex::default(),
        }
    }

    pub async fn connect(&self, url: &Url) -> Result<Connected, Transport> {
        if url.scheme == Scheme::Http {
            return self.connect_plain(url).await;
        }
        // Only the host itself may be spoken to without TLS, never one it leads to.
        let may_fall_back = self.host.http_fallback && url.authority == self.host.authority;
        if !may_fall_back {
            return self.connect_tls(url).await.map_err(|failure| failure.error);
        }
        if !contains(&self.plain, &url.authority) {
            let failure = match self.connect_tls(url).await {
                Ok(connected) => return Ok(connected),
                Err(failure) => failure,
            };
            let ambiguous = match failure.error.kind {
                _ if failure.speaks_http || failure.handshake_timeout => true,
                TransportKind::Connect | TransportKind::Timeout => !url.has_port(),
                _ => false,
            };
            if !ambiguous {
                return Err(failure.error);
            }
            tracing::debug!(host = %url.authority, error = %failure.error, "falling back to plain HTTP");
        }
        let plain = Url { scheme: Scheme::Http, ..url.clone() };
        let connected = self.connect_plain(&plain).await?;
        insert(&self.plain, &url.authority);
        Ok(connected)
    }

    async fn connect_plain(&self, url: &Url) -> Result<Connected, Transport> {
        let proxy = proxy::find(&self.matcher, url);
        let stream = self.dial(proxy.as_ref().map_or(url, |proxy| &proxy.url)).await?;
        Ok(Connected { io: Box::new(stream), proxy, is_http2: false })
    }

    /// HTTP/1.1 is offered first, and HTTP/2 to whoever refuses that.
    async fn connect_tls(&self, url: &Url) -> Result<Connected, TlsFailure> {
        let is_http2 = contains(&self.http2, &url.authority);
        match self.shake_hands(url, is_http2).await {
            Err(failure) if failure.wants_http2 && !is_http2 => {
                insert(&self.http2, &url.authority);
                self.shake_hands(url, true).await
            }
            other => other,
        }
    }

    async fn shake_hands(&self, url: &Url, is_http2: bool) -> Result<Connected, TlsFailure> {
        let stream = match proxy::find(&self.matcher, url) {
            None => self.dial(url).await?,
            Some(proxy) => {
                let mut stream = self.dial(&proxy.url).await?;
                let tunnel = proxy::tunnel(&mut stream, &proxy, url);
                timeout(self.dial_timeout, tunnel).await.unwrap_or_else(|_| Err(dial_timed_out(url)))?;
                stream
            }
        };
        let invalid = |_| Transport::new(TransportKind::Other, format!("invalid host name {}", url.host()));
        let name = ServerName::try_from(url.host().to_owned()).map_err(invalid)?;
        let mut config = self.config().await?;
        if is_http2 {
            Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        }
        let connector = TlsConnector::from(config);
        let handshake = connector.connect(name, FirstBytes::new(stream)).into_fallible();
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Err(_) => {
                let error = Transport::new(TransportKind::Timeout, "net/http: TLS handshake timeout");
                Err(TlsFailure { handshake_timeout: true, ..error.into() })
            }
            Ok(Err((error, io))) => Err(TlsFailure {
                wants_http2: tls::refuses_protocol(&error),
                speaks_http: io.seen == *b"HTTP/",
                ..tls::handshake_error(&error, url.host()).into()
            }),
            Ok(Ok(stream)) => Ok(Connected { io: Box::new(stream), proxy: None, is_http2 }),
        }
    }

    async fn config(&self) -> Result<Arc<ClientConfig>, Transport> {
        let make = || async {
            let options = self.host.tls.clone();
            let configure = tokio::task::spawn_blocking(move || tls::configure(&options));
            let config = configure
                .await
                .unwrap_or_else(|error| Err(Transport::new(TransportKind::Other, error.to_string())))?;
            Ok::<_, Transport>(Arc::new(config))
        };
        self.config.get_or_try_init(make).await.cloned()
    }

    async fn dial(&self, url: &Url) -> Result<TcpStream, Transport> {
        let stream = match timeout(self.dial_timeout, dial(url)).await {
            Ok(result) => result?,
            Err(_) => return Err(dial_timed_out(url)),
        };
        // Small requests must not wait for one another; without this they are only slower.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Why there is no TLS connection.
struct TlsFailure {
    error: Transport,
    speaks_http: bool,
    wants_http2: bool,
    handshake_timeout: bool,
}

impl From<Transport> for TlsFailure {
    fn from(error: Transport) -> Self {
        Self { error, speaks_http: false, wants_http2: false, handshake_timeout: false }
    }
}

fn contains(set: &Mutex<HashSet<String>>, authority: &str) -> bool {
    set.lock().unwrap_or_else(PoisonError::into_inner).contains(authority)
}

fn insert(set: &Mutex<HashSet<String>>, authority: &str) {
    set.lock().unwrap_or_else(PoisonError::into_inner).insert(authority.to_owned());
}

fn dial_timed_out(url: &Url) -> Transport {
    let text = format!("dial tcp {}:{}: i/o timeout", url.host(), url.port());
    Transport::new(TransportKind::Timeout, text)
}

/// Connects to the first address that answers; the next one is tried when one fails or takes long.
async fn dial(url: &Url) -> Result<TcpStream, Transport> {
    let host = url.host();
    let addresses = tokio::net::lookup_host((host, url.port())).await.map_err(|error| {
        tracing::debug!(host, %error, "name lookup failed");
        Transport::new(TransportKind::Connect, format!("dial tcp: lookup {host}: no such host"))
    })?;
    let mut addresses: std::collections::VecDeque<SocketAddr> = addresses.collect();
    let mut attempts = FuturesUnordered::new();
    let mut first_error = None;
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(async move {
                TcpStream::connect(address).await.map_err(|error| Transport::dial(address, &error))
            });
        }
        let wait = if addresses.is_empty() { DIAL_TIMEOUT } else { NEXT_ADDRESS };
        match timeout(wait, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => {
                first_error.get_or_insert(error);
            }
            Ok(None) if addresses.is_empty() => {
                let none = || {
                    Transport::new(TransportKind::Connect, format!("dial tcp: lookup {host}: no such host"))
                };
                return Err(first_error.unwrap_or_else(none));
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Remembers how the peer's first words began.
struct FirstBytes {
    stream: TcpStream,
    seen: [u8; 5],
    count: usize,
}

impl FirstBytes {
    fn new(stream: TcpStream) -> Self {
        Self { stream, seen: [0; 5], count: 0 }
    }
}

impl AsyncRead for FirstBytes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let this = &mut *self;
        let fresh = buffer.filled().iter().skip(before);
        for (slot, byte) in this.seen.iter_mut().skip(this.count).zip(fresh) {
            *slot = *byte;
            this.count += 1;
        }
        result
    }
}

impl AsyncWrite for FirstBytes {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
