//! Frames: a ten-byte header and a payload. Decoding is pure, so that it can be fed garbage.

use prost::bytes::{Buf, Bytes, BytesMut};
use tokio::net::UnixStream;

use corten_types::{Error, ErrorClass, Result};

use crate::MAX_MESSAGE;

/// Length of the header: payload length u32, stream u32, kind u8, flags u8, big endian.
pub(crate) const HEADER: usize = 10;

/// How much is read at least with one system call.
const CHUNK: usize = 1024;
/// How much room is made at most before bytes have arrived: a header alone reserves no 4 MiB.
const MAX_RESERVE: usize = 64 << 10;

/// Frame kinds.
pub(crate) const REQUEST: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const DATA: u8 = 3;

/// Flag of a request that opens a stream: more data from the client follows.
pub(crate) const REMOTE_OPEN: u8 = 2;

/// One frame as received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub stream: u32,
    pub kind: u8,
    pub flags: u8,
    /// The payload; an error if it was too long and has been (or is being) skipped.
    pub payload: Result<Bytes, Oversized>,
}

/// A payload longer than [`MAX_MESSAGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oversized(pub usize);

impl From<Oversized> for Error {
    fn from(Oversized(length): Oversized) -> Self {
        Self::bare(
            ErrorClass::ResourceExhausted,
            format!("message length {length} exceed maximum message size of {MAX_MESSAGE}"),
        )
    }
}

/// Encodes one frame. A payload that is too long is refused.
pub(crate) fn encode(stream: u32, kind: u8, message: &impl prost::Message) -> Result<Vec<u8>, Oversized> {
    let length = message.encoded_len();
    if length > MAX_MESSAGE {
        return Err(Oversized(length));
    }
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[kind, 0]);
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// Puts another stream id into an encoded frame.
pub(crate) fn set_stream(frame: &mut [u8], stream: u32) {
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// Bytes of an oversized payload that are still to be thrown away.
    skip: usize,
}

impl Decoder {
    /// The next whole frame in the buffer.
    pub fn next(&mut self) -> Option<Frame> {
        self.discard();
        let header = self.buffer.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        if length > MAX_MESSAGE {
            self.buffer.advance(HEADER);
            self.skip = length;
            self.discard();
            return Some(Frame { stream, kind, flags, payload: Err(Oversized(length)) });
        }
        if self.buffer.len() < HEADER + length {
            let missing = HEADER + length - self.buffer.len();
            self.buffer.reserve(missing.min(MAX_RESERVE));
            return None;
        }
        self.buffer.advance(HEADER);
        let payload = Ok(self.buffer.split_to(length).freeze());
        Some(Frame { stream, kind, flags, payload })
    }

    /// Reads frames from a socket: the next one, or none at the end of the stream.
    pub async fn read(&mut self, stream: &UnixStream) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.next() {
                return Ok(Some(frame));
            }
            if self.buffer.is_empty() {
                // Nothing is kept while waiting.
                self.buffer = BytesMut::new();
            }
            stream.readable().await?;
            self.buffer.reserve(CHUNK);
            match stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn discard(&mut self) {
        let discarded = self.skip.min(self.buffer.len());
        self.buffer.advance(discarded);
        self.skip -= discarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, flags]);
        bytes.extend(payload);
        bytes
    }

    fn decode_in_pieces(bytes: &[u8], piece: usize) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.buffer.extend_from_slice(part);
            frames.extend(std::iter::from_fn(|| decoder.next()));
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            sent in prop::collection::vec((any::<u32>(), any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            piece in 1usize..600,
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|(s, k, f, p)| raw(*s, *k, *f, p)).collect();
            let received: Vec<_> = decode_in_pieces(&bytes, piece)
                .into_iter()
                .map(|frame| (frame.stream, frame.kind, frame.flags, frame.payload.unwrap().to_vec()))
                .collect();
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn garbage_never_panics_and_reserves_little(bytes in prop::collection::vec(any::<u8>(), 0..4096), piece in 1usize..512) {
            let mut decoder = Decoder::default();
            for part in bytes.chunks(piece) {
                decoder.buffer.extend_from_slice(part);
                while decoder.next().is_some() {}
                prop_assert!(decoder.buffer.capacity() <= 2 * (MAX_RESERVE + bytes.len()));
            }
        }
    }

    #[test]
    fn an_oversized_payload_is_skipped_and_the_next_frame_read() {
        let length = MAX_MESSAGE + 1;
        let mut bytes = raw(7, REQUEST, 0, &vec![1; length]);
        bytes.extend(raw(9, REQUEST, 0, b"x"));
        let frames = decode_in_pieces(&bytes, 60_000);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].payload, Err(Oversized(length)));
        assert_eq!(frames[0].stream, 7);
        assert_eq!(frames[1].payload.as_deref(), Ok(&b"x"[..]));
    }
}
