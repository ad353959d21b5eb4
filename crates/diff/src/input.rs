//! What a layer is compressed with is told by its first bytes.

use std::io::{self, BufRead, BufReader, Read};

use corten_types::{Digest, Digester, Result};

const BUFFER: usize = 128 << 10;

/// The uncompressed stream of a layer.
pub(crate) fn decompress<'a>(input: &'a mut dyn Read) -> Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let start = input.fill_buf()?;
    // Zstandard: a frame, or one of the 16 kinds that are to be skipped.
    let zstd = match start {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => true,
        [first, 0x2a, 0x4d, 0x18, ..] => (0x50..=0x5f).contains(first),
        _ => false,
    };
    Ok(match start {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        _ if zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}

/// Hashes and counts what passes.
pub(crate) struct Hashing<R> {
    inner: R,
    digester: Digester,
    count: u64,
    limit: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self { inner, digester: Digester::default(), count: 0, limit }
    }

    /// Reads what is left, and tells digest and length of the whole.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.digester.finish(), self.count))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digester.update(buffer.get(..count).unwrap_or_default());
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::other(format!(
                "the layer is larger than {} bytes when uncompressed",
                self.limit
            )));
        }
        Ok(count)
    }
}
