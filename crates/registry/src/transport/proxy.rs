//! Proxies, as the environment names them (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Transport, TransportKind};
use crate::hosts::is_localhost;
use crate::url::{Scheme, Url};

const MAX_ANSWER: usize = 8 << 10;

/// The proxy of a request.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub url: Url,
    /// Value of `Proxy-Authorization`.
    pub authorization: Option<http::HeaderValue>,
}

/// The proxy for an address; never one for this machine.
pub(super) fn find(matcher: &Matcher, url: &Url) -> Option<Proxy> {
    if is_localhost(&url.authority) {
        return None;
    }
    let intercept = matcher.intercept(&url.to_string().parse().ok()?)?;
    let authorization = intercept.basic_auth().cloned();
    Some(Proxy { url: Url::parse(&intercept.uri().to_string()).ok()?, authorization })
}

/// Asks a proxy to pass everything through to the host of `url`.
pub(super) async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, url: &Url) -> Result<(), Transport> {
    let failed = |text: String| Transport::new(TransportKind::Connect, format!("proxyconnect tcp: {text}"));
    if proxy.url.scheme == Scheme::Https {
        return Err(failed("proxies are spoken to over http only".to_owned()));
    }
    let host = if url.host().contains(':') { format!("[{}]", url.host()) } else { url.host().to_owned() };
    let target = format!("{host}:{}", url.port());
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(value) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(|error| Transport::io(&error))?;
    // Byte by byte: what follows the answer belongs to the tunnel.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(failed("answer too long".to_owned()));
        }
        answer.push(stream.read_u8().await.map_err(|error| Transport::io(&error))?);
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.lines().next().unwrap_or_default().split_once(' ').map_or("", |(_, status)| status);
    if status.starts_with('2') { Ok(()) } else { Err(failed(status.to_owned())) }
}
