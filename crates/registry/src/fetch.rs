//! From a descriptor to bytes (spec 03 §6): from the hosts in their order, going on where a connection
//! broke.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corten_types::{Descriptor, Error, Reference, Result, media_type};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use http::{HeaderName, HeaderValue, Method};

use crate::MAX_MANIFEST_SIZE;
use crate::hosts::{Capabilities, Host, Tls};
use crate::lanes::Lanes;
use crate::request::{Endpoint, unexpected_status};
use crate::resolver::{Parts, Repository, Resolver};
use crate::transport::{Body, Limits, Response, Transport, TransportKind};
use crate::url::Url;

const ENCODINGS: HeaderValue = HeaderValue::from_static("zstd;q=1.0, gzip;q=0.8, deflate;q=0.5");
/// Connections in a row that may bring (nearly) nothing.
const MAX_FAILURES: u32 = 5;
/// Bytes that count as progress; a peer that trickles less is as good as silent.
const PROGRESS: u64 = 4 << 10;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Fetches the content of one repository.
#[derive(Clone)]
pub struct Fetcher {
    repository: Arc<Repository>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("reference", &self.repository.reference).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A fetcher for the repository of a reference. Its connections and tokens are shared by its clones.
    ///
    /// # Errors
    /// InvalidArgument for a reference without a repository.
    pub fn fetcher(&self, reference: &Reference) -> Result<Fetcher> {
        Ok(Fetcher { repository: Arc::new(self.repository(reference)?) })
    }
}

impl Fetcher {
    /// Opens content from `offset` on. The bytes are not verified.
    ///
    /// # Errors
    /// NotFound when no host has it, and what the hosts answer else, after `httpReadSeeker: failed open: `.
    pub async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Download> {
        let size = u64::try_from(descriptor.size)
            .map_err(|_| Error::invalid_argument(format!("negative size of {}", descriptor.digest)))?;
        if is_manifest(descriptor) && descriptor.size > MAX_MANIFEST_SIZE {
            let text = format!("rejecting {size} byte manifest for {}", self.repository.reference);
            return Err(Error::not_found(text));
        }
        let mut download = Download {
            fetcher: self.clone(),
            descriptor: descriptor.clone(),
            size,
            offset,
            source: None,
            avoid: Vec::new(),
            whole: false,
            failures: 0,
            gained: 0,
        };
        if offset < size {
            download.source = Some(self.open(descriptor, offset, &[]).await?);
        }
        Ok(download)
    }

    /// The repository's reference, for messages.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.repository.reference
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Part of a blob from one host, whole.
    ///
    /// # Errors
    /// Anything that keeps the host from giving exactly this part.
    pub(crate) async fn part(
        &self,
        authority: &str,
        descriptor: &Descriptor,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, Transport> {
        let failed = |text: String| Transport::new(TransportKind::Other, text);
        let endpoint = self.repository.endpoints.iter().find(|endpoint| endpoint.host.authority == authority);
        let endpoint = endpoint.ok_or_else(|| failed(format!("no host {authority}")))?;
        let mut headers = headers(descriptor, range.start.max(1));
        headers.retain(|(name, _)| name != RANGE);
        let value = format!("bytes={}-{}", range.start, range.end - 1);
        headers.extend(HeaderValue::from_str(&value).ok().map(|value| (RANGE, value)));
        let request = endpoint.request(Method::GET, &format!("blobs/{}", descriptor.digest), &headers);
        let sent = endpoint.send(request, &self.repository.scopes, true).await;
        let response = sent.map_err(|failure| failed(failure.into_error().message().to_owned()))?;
        if response.status.as_u16() != 206 {
            return Err(failed(format!("a part was answered with {}", response.status)));
        }
        let (mut body, _) =
            check(Ok(response), range.start).await.map_err(|error| failed(error.message().to_owned()))?;
        // In one piece: a host may send it in as many as it has bytes.
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        let mut part = BytesMut::with_capacity(length);
        while let Some(chunk) = body.chunk().await? {
            if chunk.len() > length - part.len() {
                return Err(failed("a part is too long".to_owned()));
            }
            part.extend_from_slice(&chunk);
        }
        if part.len() < length {
            return Err(Transport::new(TransportKind::Eof, "unexpected EOF"));
        }
        Ok(part.freeze())
    }

    /// What bounds parts that wait in memory.
    pub(crate) fn limits(&self) -> &Limits {
        &self.repository.client_options.limits
    }

    /// The parts that blobs are fetched in from the beginning.
    pub(crate) fn parts(&self) -> Option<Parts> {
        self.repository.parts
    }

    /// How long a blob may come slowly before it is split.
    pub(crate) fn split_after(&self) -> Duration {
        self.repository.split_after
    }

    async fn open(&self, descriptor: &Descriptor, offset: u64, avoid: &[String]) -> Result<Source> {
        let opened = self.open_anywhere(descriptor, offset, avoid).await;
        opened.map_err(|error| error.context("httpReadSeeker: failed open"))
    }

    async fn open_anywhere(&self, descriptor: &Descriptor, offset: u64, avoid: &[String]) -> Result<Source> {
        let mut endpoints = self.repository.capable(|can| can.pull);
        endpoints.sort_by_key(|endpoint| avoid.contains(&endpoint.host.authority));
        if let Some(source) = self.open_foreign(descriptor, offset, avoid).await {
            return Ok(source);
        }
        if endpoints.is_empty() {
            return Err(Error::not_found("no pull hosts"));
        }
        let manifest = is_manifest(descriptor);
        let what = format!("{}/{}", if manifest { "manifests" } else { "blobs" }, descriptor.digest);
        let mut first_error: Option<Error> = None;
        for (index, endpoint) in endpoints.iter().enumerate() {
            let last = index + 1 == endpoints.len();
            match open_at(endpoint, &what, &self.repository.scopes, descriptor, offset, last).await {
                Ok(source) => return Ok(source),
                Err(error) => {
                    tracing::debug!(host = %endpoint.host.authority, %error, "trying next host");
                    first_error.get_or_insert(error);
                }
            }
        }
        let error = first_error.unwrap_or_else(|| Error::not_found("no pull hosts"));
        if error.is_not_found() && !manifest {
            let hint = error.message().to_owned();
            return Err(Error::not_found(format!(
                "could not fetch content descriptor {} ({}) from remote",
                descriptor.digest, descriptor.media_type
            ))
            .with_hint(hint));
        }
        Err(error)
    }

    /// Tries the addresses that a descriptor itself names (foreign layers). They come from the image, so
    /// nothing of ours is sent there: no credentials, no configured header lines, no client certificate
    /// (CVE-2020-15157).
    async fn open_foreign(&self, descriptor: &Descriptor, offset: u64, avoid: &[String]) -> Option<Source> {
        for text in &descriptor.urls {
            let Ok(url) = Url::parse(text) else { continue };
            if avoid.contains(&url.authority) {
                continue;
            }
            let host = Host {
                scheme: url.scheme,
                authority: url.authority.clone(),
                path: String::new(),
                capabilities: Capabilities::ALL,
                headers: Vec::new(),
                tls: Tls::default(),
                dial_timeout: None,
                http_fallback: false,
            };
            let options = self.repository.client_options.clone();
            // Not a mirror of anything, hence no `ns`.
            let endpoint = Endpoint::new(host, &url.authority, "", "", None, options);
            let mut request = endpoint.request(Method::GET, "", &headers(descriptor, offset));
            request.url = url.clone();
            let sent = endpoint.send(request, &BTreeSet::new(), false).await;
            let response = sent.map_err(crate::request::Failure::into_error);
            match check(response, offset).await {
                Ok((body, skip)) => {
                    return Some(Source {
                        body: Some(body),
                        skip,
                        authority: url.authority,
                        lanes: Lanes::never(),
                    });
                }
                Err(error) => tracing::debug!(host = %url.authority, %error, "trying next address"),
            }
        }
        None
    }
}

/// Content that arrives piece by piece, in order and without gaps.
#[derive(Debug)]
pub struct Download {
    fetcher: Fetcher,
    descriptor: Descriptor,
    size: u64,
    offset: u64,
    source: Option<Source>,
    /// Hosts whose connections brought nothing; they are asked last.
    avoid: Vec<String>,
    /// Whether parts failed, so that the blob is not split again.
    whole: bool,
    /// Connections in a row without progress.
    failures: u32,
    /// Bytes since the last failure.
    gained: u64,
}

/// An open answer.
struct Source {
    /// Gone once the rest comes in parts.
    body: Option<Body>,
    /// Bytes before the wanted offset that the host sends nevertheless.
    skip: u64,
    /// The host that was asked.
    authority: String,
    /// Further connections, where they help.
    lanes: Lanes,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Download {
    /// How many bytes of the content came so far, counted from its start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece, never empty; nothing once the whole content came. A connection that breaks or falls
    /// silent is replaced by another one, up to five times in a row without progress.
    ///
    /// # Errors
    /// Names the content and the host, and why it gave no more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.offset >= self.size {
                self.source = None;
                return Ok(None);
            }
            let Some(source) = &mut self.source else {
                self.reopen().await?;
                continue;
            };
            let chunk = if source.lanes.turn(&self.fetcher, &self.descriptor, self.offset) {
                source.body = None;
                source.lanes.next(self.offset).await
            } else if source.body.is_some() {
                source.next().await
            } else {
                // No more parts for now: on over one connection.
                self.source = None;
                continue;
            };
            match chunk {
                Ok(Some(chunk)) => {
                    let left = self.size - self.offset;
                    if chunk.len() as u64 > left {
                        let text = format!("{}: more than {} bytes", self.what(), self.size);
                        return Err(Error::failed_precondition(text));
                    }
                    self.offset += chunk.len() as u64;
                    self.gained += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) => self.lost(&Transport::new(TransportKind::Eof, "unexpected EOF")).await?,
                Err(error) => self.lost(&error).await?,
            }
        }
    }

    /// Takes note of a broken connection; the next one is made after a while.
    async fn lost(&mut self, error: &Transport) -> Result<()> {
        let what = self.what();
        let source = self.source.take();
        self.whole |= source.as_ref().is_some_and(|source| source.body.is_none());
        let authority = source.map(|source| source.authority);
        if self.gained >= PROGRESS {
            self.failures = 0;
        } else if let Some(authority) = authority
            && !self.avoid.contains(&authority)
        {
            self.avoid.push(authority);
        }
        self.gained = 0;
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            return Err(Error::unavailable(format!(
                "{what}: {error} after {} of {} bytes, {} attempts",
                self.offset, self.size, self.failures
            )));
        }
        tracing::info!(%what, %error, offset = self.offset, "the connection broke, going on where it did");
        tokio::time::sleep(FIRST_WAIT * (1 << self.failures.min(6)) / 2).await;
        Ok(())
    }

    async fn reopen(&mut self) -> Result<()> {
        match self.fetcher.open(&self.descriptor, self.offset, &self.avoid).await {
            Ok(mut source) => {
                if self.whole {
                    source.lanes = Lanes::never();
                }
                self.source = Some(source);
                Ok(())
            }
            // The host may be about to come back.
            Err(error) if !error.is_not_found() && self.failures + 1 < MAX_FAILURES => {
                self.lost(&Transport::new(TransportKind::Other, error.message())).await
            }
            Err(error) => Err(error),
        }
    }

    fn what(&self) -> String {
        let kind = if media_type::is_layer(&self.descriptor.media_type) { "layer" } else { "content" };
        let host = self.source.as_ref().map_or("", |source| &source.authority);
        let from = if host.is_empty() { String::new() } else { format!(" from {host}") };
        format!("{kind} {}{from}", self.descriptor.digest)
    }
}

impl Source {
    async fn next(&mut self) -> Result<Option<Bytes>, Transport> {
        let Some(body) = &mut self.body else { return Ok(None) };
        while let Some(mut chunk) = self.lanes.watch(body.chunk()).await? {
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

async fn open_at(
    endpoint: &Endpoint,
    what: &str,
    scopes: &BTreeSet<String>,
    descriptor: &Descriptor,
    offset: u64,
    last: bool,
) -> Result<Source> {
    let request = endpoint.request(Method::GET, what, &headers(descriptor, offset));
    let url = request.url.to_string();
    let response = endpoint.send(request, scopes, last).await.map_err(crate::request::Failure::into_error);
    let response = match response {
        Ok(response) if response.status.as_u16() == 404 => {
            return Err(Error::not_found(format!("content at {url} not found")));
        }
        other => other,
    };
    let denied = response.as_ref().is_ok_and(|response| matches!(response.status.as_u16(), 401 | 403));
    let (body, skip) = check(response, offset).await.map_err(|error| match error.hint() {
        None if denied => error.with_hint(format!("asked {}", endpoint.describe())),
        _ => error,
    })?;
    let lanes =
        if body.is_encoded() || skip > 0 { Lanes::never() } else { Lanes::new(&endpoint.host.authority) };
    Ok(Source { body: Some(body), skip, authority: endpoint.host.authority.clone(), lanes })
}

/// The body of a good answer, and how much of it comes before the wanted offset.
async fn check(response: Result<Response>, offset: u64) -> Result<(Body, u64)> {
    let response = response?;
    if !response.status.is_success() {
        return Err(unexpected_status(&Method::GET, response).await);
    }
    let range = response.headers.get(CONTENT_RANGE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let skip = match range {
        None => offset,
        Some(range) if range.starts_with(&format!("bytes {offset}-")) => 0,
        Some(range) => {
            return Err(Error::unknown(format!("unhandled content range in response: {range}")));
        }
    };
    Ok((response.body, skip))
}

fn headers(descriptor: &Descriptor, offset: u64) -> Vec<(HeaderName, HeaderValue)> {
    let accept = match descriptor.media_type.as_str() {
        "" => "*/*".to_owned(),
        media_type => format!("{media_type}, */*"),
    };
    let accept = HeaderValue::from_str(&accept).unwrap_or(HeaderValue::from_static("*/*"));
    let mut headers = vec![(ACCEPT, accept)];
    if offset == 0 {
        headers.push((ACCEPT_ENCODING, ENCODINGS));
    } else {
        // A range counts bytes as stored, so the transfer must not be encoded.
        headers.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
        headers.extend(HeaderValue::from_str(&format!("bytes={offset}-")).ok().map(|value| (RANGE, value)));
    }
    headers
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}
