//! What a peer answers, piece by piece: never waiting without end, decoded where the transfer is encoded.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::client::{Pool, Sender};
use super::{Transport, TransportKind};

/// Encoded bytes decoded at a time, so that a small piece cannot grow to gigabytes at once.
const SLICE: usize = 1 << 10;
/// What is read of an answer that nobody wants, so that its connection can be used again.
const MAX_DISCARD: usize = 64 << 10;

/// The body of an answer.
pub(crate) struct Body {
    incoming: Incoming,
    stall: Duration,
    decoder: Decoder,
    /// Encoded bytes that wait to be decoded.
    pending: Bytes,
    pooled: Option<(Arc<Pool>, String, Sender)>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        headers: &HeaderMap,
        stall: Duration,
        pooled: Option<(Arc<Pool>, String, Sender)>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let decoder = Decoder::new(headers);
        let mut body = Self { incoming, stall, decoder, pending: Bytes::new(), pooled, _permit: permit };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    /// Whether the bytes differ from those on the wire, so that lengths in headers do not count them.
    pub fn is_encoded(&self) -> bool {
        !matches!(self.decoder, Decoder::Identity)
    }

    /// The next piece, never empty; nothing at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Transport> {
        loop {
            if !self.pending.is_empty() {
                let slice = self.pending.split_to(self.pending.len().min(SLICE));
                let decoded = self.decoder.push(&slice)?;
                if !decoded.is_empty() {
                    return Ok(Some(decoded));
                }
                continue;
            }
            let frame = match timeout(self.stall, self.incoming.frame()).await {
                Err(_) => {
                    let text = format!("no data for {:?}", self.stall);
                    return Err(Transport::new(TransportKind::Timeout, text));
                }
                Ok(None) => {
                    self.release();
                    let rest = self.decoder.finish()?;
                    return Ok((!rest.is_empty()).then_some(rest));
                }
                Ok(Some(Err(error))) => return Err(Transport::http(&error)),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers are of no interest.
            let Ok(data) = frame.into_data() else { continue };
            // Whoever knows how long it is does not ask again after the last piece.
            if self.incoming.is_end_stream() {
                self.release();
            }
            if data.is_empty() {
                continue;
            }
            if !self.is_encoded() {
                return Ok(Some(data));
            }
            self.pending = data;
        }
    }

    /// The whole body; nothing if it is longer than `limit`.
    pub async fn read(mut self, limit: usize) -> Result<Option<Bytes>, Transport> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > limit {
                return Ok(None);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Some(whole.freeze()))
    }

    /// Reads a short rest that nobody wants, so that the connection can be used again.
    pub async fn finish(mut self) {
        let mut read = 0;
        while let Ok(Some(chunk)) = self.chunk().await {
            read += chunk.len();
            if read > MAX_DISCARD {
                break;
            }
        }
    }

    fn release(&mut self) {
        if let Some((pool, origin, sender)) = self.pooled.take() {
            pool.put(&origin, sender);
        }
    }
}

/// Undoes a `Content-Encoding`.
enum Decoder {
    Identity,
    Gzip(flate2::write::MultiGzDecoder<Vec<u8>>),
    /// Undecided until the first byte tells the zlib format from bare deflate, which servers mix up.
    Deflate,
    Zlib(flate2::write::ZlibDecoder<Vec<u8>>),
    Bare(flate2::write::DeflateDecoder<Vec<u8>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Vec<u8>>>),
    Unknown(String),
}

impl Decoder {
    fn new(headers: &HeaderMap) -> Self {
        let name = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Self::Identity,
            "gzip" | "x-gzip" => Self::Gzip(flate2::write::MultiGzDecoder::new(Vec::new())),
            "deflate" => Self::Deflate,
            "zstd" => match zstd::stream::write::Decoder::new(Vec::new()) {
                Ok(decoder) => Self::Zstd(Box::new(decoder)),
                Err(error) => Self::Unknown(error.to_string()),
            },
            other => Self::Unknown(other.to_owned()),
        }
    }

    fn push(&mut self, data: &[u8]) -> Result<Bytes, Transport> {
        if let Self::Deflate = self {
            *self = match data.first() {
                Some(first) if first & 0x0f == 8 => Self::Zlib(flate2::write::ZlibDecoder::new(Vec::new())),
                _ => Self::Bare(flate2::write::DeflateDecoder::new(Vec::new())),
            };
        }
        let decoded = match self {
            Self::Identity | Self::Deflate => Ok(data.to_vec()),
            Self::Gzip(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Zlib(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Bare(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Zstd(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Unknown(name) => {
                let text = format!("unsupported Content-Encoding {name:?}");
                return Err(Transport::new(TransportKind::Other, text));
            }
        };
        decoded.map(Bytes::from).map_err(|error| bad_encoding(&error))
    }

    fn finish(&mut self) -> Result<Bytes, Transport> {
        let rest = match self {
            Self::Gzip(decoder) => decoder.try_finish().map(|()| std::mem::take(decoder.get_mut())),
            Self::Zlib(decoder) => decoder.try_finish().map(|()| std::mem::take(decoder.get_mut())),
            Self::Bare(decoder) => decoder.try_finish().map(|()| std::mem::take(decoder.get_mut())),
            Self::Zstd(decoder) => decoder.flush().map(|()| std::mem::take(decoder.get_mut())),
            Self::Identity | Self::Deflate | Self::Unknown(_) => Ok(Vec::new()),
        };
        rest.map(Bytes::from).map_err(|error| bad_encoding(&error))
    }
}

fn bad_encoding(error: &std::io::Error) -> Transport {
    Transport::new(TransportKind::Eof, format!("bad Content-Encoding: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoding: &'static str, data: &[u8]) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static(encoding));
        let mut decoder = Decoder::new(&headers);
        let mut out = Vec::new();
        for piece in data.chunks(7) {
            out.extend_from_slice(&decoder.push(piece).unwrap());
        }
        out.extend_from_slice(&decoder.finish().unwrap());
        out
    }

    #[test]
    fn encodings_are_undone() {
        let plain: Vec<u8> = (0..10_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let level = flate2::Compression::fast();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
        gzip.write_all(&plain).unwrap();
        assert_eq!(decode("gzip", &gzip.finish().unwrap()), plain);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
        zlib.write_all(&plain).unwrap();
        assert_eq!(decode("deflate", &zlib.finish().unwrap()), plain);
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), level);
        bare.write_all(&plain).unwrap();
        assert_eq!(decode("deflate", &bare.finish().unwrap()), plain);
        assert_eq!(decode("zstd", &zstd::encode_all(plain.as_slice(), 1).unwrap()), plain);
    }

    #[test]
    fn an_unknown_encoding_is_an_error() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("br"));
        assert!(Decoder::new(&headers).push(b"x").unwrap_err().text.contains("br"));
    }
}
