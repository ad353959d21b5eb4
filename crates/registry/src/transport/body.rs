//! What a peer answers, piece by piece: never waiting without end, decoded where the transfer is encoded.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use zstd::stream::raw::Operation;

use super::client::{Pool, Sender};
use super::{Transport, TransportKind};

/// Encoded bytes decoded at a time, so that a small piece cannot grow to gigabytes at once: to a thousand times as
/// many with gzip, and to 32 MB with Zstandard, of which no more than this comes at once.
const SLICE: usize = 1 << 10;
const DECODED: usize = 128 << 10;
/// Zstandard as a transfer encoding looks back 8 MiB at most (RFC 9659); decoders keep that much.
const ZSTD_WINDOW: u32 = 23;
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
            if !self.pending.is_empty() || self.decoder.is_full() {
                let decoded = self.decoder.take(&mut self.pending)?;
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
    /// And whether it may have more of what it got already.
    Zstd(Box<zstd::stream::raw::Decoder<'static>>, bool),
    Unknown(String),
}

impl Decoder {
    fn new(headers: &HeaderMap) -> Self {
        let name = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Self::Identity,
            "gzip" | "x-gzip" => Self::Gzip(flate2::write::MultiGzDecoder::new(Vec::new())),
            "deflate" => Self::Deflate,
            "zstd" => match zstd_decoder() {
                Ok(decoder) => Self::Zstd(Box::new(decoder), false),
                Err(error) => Self::Unknown(error.to_string()),
            },
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// Whether more comes out without anything more going in.
    fn is_full(&self) -> bool {
        matches!(self, Self::Zstd(_, true))
    }

    /// Decodes some of `pending`.
    fn take(&mut self, pending: &mut Bytes) -> Result<Bytes, Transport> {
        let Self::Zstd(decoder, is_full) = self else {
            let slice = pending.split_to(pending.len().min(SLICE));
            return self.push(&slice);
        };
        let mut decoded = vec![0; DECODED];
        let done = decoder.run_on_buffers(pending, &mut decoded).map_err(|error| bad_encoding(&error))?;
        pending.advance(done.bytes_read);
        *is_full = done.bytes_written == DECODED;
        decoded.truncate(done.bytes_written);
        Ok(decoded.into())
    }

    fn push(&mut self, data: &[u8]) -> Result<Bytes, Transport> {
        if let Self::Deflate = self {
            *self = match data.first() {
                Some(first) if first & 0x0f == 8 => Self::Zlib(flate2::write::ZlibDecoder::new(Vec::new())),
                _ => Self::Bare(flate2::write::DeflateDecoder::new(Vec::new())),
            };
        }
        let decoded = match self {
            Self::Identity | Self::Deflate | Self::Zstd(..) => Ok(data.to_vec()),
            Self::Gzip(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Zlib(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
            Self::Bare(decoder) => decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut())),
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
            Self::Identity | Self::Deflate | Self::Zstd(..) | Self::Unknown(_) => Ok(Vec::new()),
        };
        rest.map(Bytes::from).map_err(|error| bad_encoding(&error))
    }
}

fn zstd_decoder() -> std::io::Result<zstd::stream::raw::Decoder<'static>> {
    let mut decoder = zstd::stream::raw::Decoder::new()?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW))?;
    Ok(decoder)
}

fn bad_encoding(error: &std::io::Error) -> Transport {
    Transport::new(TransportKind::Eof, format!("bad Content-Encoding: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn decode(encoding: &'static str, data: &[u8]) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static(encoding));
        let mut decoder = Decoder::new(&headers);
        let mut out = Vec::new();
        for piece in data.chunks(7) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() || decoder.is_full() {
                out.extend_from_slice(&decoder.take(&mut piece).unwrap());
            }
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
    fn a_small_piece_grows_in_small_pieces() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("zstd"));
        let mut decoder = Decoder::new(&headers);
        let length = 200 << 20;
        let mut pending = Bytes::from(zstd::encode_all(std::io::repeat(0).take(length), 1).unwrap());
        assert!(pending.len() < 32 << 10, "{}", pending.len());
        let mut count = 0;
        while !pending.is_empty() || decoder.is_full() {
            let piece = decoder.take(&mut pending).unwrap();
            assert!(piece.len() <= DECODED);
            count += piece.len() as u64;
        }
        assert_eq!(count, length);
    }

    #[test]
    fn an_unknown_encoding_is_an_error() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("br"));
        assert!(Decoder::new(&headers).push(b"x").unwrap_err().text.contains("br"));
    }
}
