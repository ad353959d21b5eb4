//! The uncompressed stream of a layer: what it is compressed with is told by its first bytes; everything
//! that passes is hashed and counted.
//!
//! A thread of its own works on what was decompressed while the next part is: inflating takes one core about
//! as long as writing files does, so a large layer takes half the time. A layer of one part needs no thread.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use corten_types::{Digest, Digester, Error, ErrorClass, Result};

/// Bytes that are handed over at once.
const PART: usize = 256 << 10;
/// Parts that may wait.
const WAITING: usize = 4;
const INPUT: usize = 128 << 10;

/// Digest and length of an uncompressed layer.
#[derive(Debug)]
pub(crate) struct Totals {
    pub digest: Digest,
    pub size: u64,
}

/// Decompresses `input` and lets `work` read it; the rest that it leaves is hashed as well.
///
/// # Errors
/// InvalidArgument for what is damaged or larger than `limit`; those of the input and of the work.
pub(crate) fn decompress<T: Send>(
    input: &mut dyn Read,
    limit: u64,
    work: impl FnOnce(&mut dyn BufRead) -> Result<T> + Send,
) -> Result<(T, Totals)> {
    let mut source = Source { decoder: decoder(input)?, count: 0, limit, ended: false };
    let first = source.part(Vec::new())?;
    if source.ended {
        let mut digester = Digester::default();
        digester.update(&first);
        let done = work(&mut first.as_slice())?;
        return Ok((done, Totals { digest: digester.finish(), size: source.count }));
    }
    let (done, digest) = overlapped(&mut source, first, work)?;
    Ok((done, Totals { digest, size: source.count }))
}

fn overlapped<T: Send>(
    source: &mut Source<'_>,
    first: Vec<u8>,
    work: impl FnOnce(&mut dyn BufRead) -> Result<T> + Send,
) -> Result<(T, Digest)> {
    let (sender, parts) = sync_channel(WAITING);
    let (used, buffers) = sync_channel(WAITING + 2);
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("apply".to_owned()).spawn_scoped(
            scope,
            move || -> Result<_> {
                let mut stream =
                    Parts { parts, used, digester: Digester::default(), part: Vec::new(), position: 0 };
                let done = work(&mut stream)?;
                stream.drain()?;
                Ok((done, stream.digester.finish()))
            },
        )?;
        let fed = feed(source, first, &sender, &buffers);
        drop(sender);
        let done = worker.join().map_err(|_| Error::internal("the thread that applies a layer panicked"))?;
        // If the worker failed, it says why; the source only saw that nobody listens.
        let done = done?;
        fed.map(|()| done)
    })
}

/// Hands over part after part, until the end or until nobody wants any.
fn feed(
    source: &mut Source<'_>,
    first: Vec<u8>,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<()> {
    let mut next = Ok(first);
    loop {
        let over = source.ended || next.is_err();
        if sender.send(next).is_err() || over {
            return Ok(());
        }
        next = source.part(buffers.try_recv().unwrap_or_default());
    }
}

/// What is decompressed.
struct Source<'a> {
    decoder: Box<dyn Read + 'a>,
    count: u64,
    limit: u64,
    ended: bool,
}

impl Source<'_> {
    /// The next part, as large as can be.
    fn part(&mut self, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        buffer.resize(PART, 0);
        let mut length = 0;
        while let Some(room @ [_, ..]) = buffer.get_mut(length..) {
            match self.decoder.read(room) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(error)),
            }
        }
        buffer.truncate(length);
        self.count += length as u64;
        if self.count > self.limit {
            let text = format!("the layer is larger than {} bytes when uncompressed", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(buffer)
    }
}

/// What the other thread reads.
struct Parts {
    parts: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    digester: Digester,
    part: Vec<u8>,
    position: usize,
}

impl Parts {
    fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }
}

impl BufRead for Parts {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position >= self.part.len() {
            // There is always room; and if nobody takes it, it is not needed.
            let _ = self.used.try_send(std::mem::take(&mut self.part));
            self.position = 0;
            // The sender goes after the last part.
            self.part = self.parts.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            self.digester.update(&self.part);
        }
        Ok(self.part.get(self.position..).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        self.position += length;
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

fn decoder<'a>(input: &'a mut dyn Read) -> Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(INPUT, Marked(input));
    let start = input.fill_buf().map_err(explain)?;
    // Zstandard: a frame, or one of the 16 kinds that are to be skipped.
    let is_zstd = match start {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => true,
        [first, 0x2a, 0x4d, 0x18, ..] => (0x50..=0x5f).contains(first),
        _ => false,
    };
    Ok(match start {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        _ if is_zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}

/// Tells failures of the input from those of the decoder.
struct Marked<'a>(&'a mut dyn Read);

#[derive(Debug)]
struct InputFailure(io::Error);

impl std::fmt::Display for InputFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for InputFailure {}

impl Read for Marked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, InputFailure(error)),
        })
    }
}

/// The failure of the input itself, or that the layer is damaged.
fn explain(error: io::Error) -> io::Error {
    match error.downcast::<InputFailure>() {
        Ok(failure) => failure.0,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "unexpected EOF: the layer is truncated")
        }
        Err(error) => io::Error::new(io::ErrorKind::InvalidData, format!("damaged layer: {error}")),
    }
}

/// An error of the stream or of the archive in it.
pub(crate) fn failure(error: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, InvalidData, UnexpectedEof};
    match error.kind() {
        FileTooLarge if error.raw_os_error().is_none() => Error::new(ErrorClass::ResourceExhausted, error),
        InvalidData | UnexpectedEof if error.raw_os_error().is_none() => Error::invalid_argument(error),
        _ => error.into(),
    }
}
