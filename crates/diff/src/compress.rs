//! A layer's stream on its way into a blob: one thread makes it and hashes it, others compress it, and the caller's
//! thread gets what is to be stored.
//!
//! Deflating takes many times longer than everything else. So the stream is cut into pieces that are compressed side
//! by side, each with the end of the one before it as its dictionary; together they are one ordinary gzip member. The
//! same stream gives the same bytes on any machine.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use corten_types::{Digester, Error, Result, ResultExt};
use flate2::{Compress, Crc, FlushCompress, Status};

use crate::compare::canceled;
use crate::stream::Totals;

/// Bytes that are compressed as one, and what of them helps to compress the next.
const PIECE: usize = 512 << 10;
const WINDOW: usize = 32 << 10;
/// Threads that compress.
const WORKERS: usize = 4;
/// Pieces that may be on their way.
const WAITING: usize = 8;
/// Those that others use by default.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
/// A member without a name, of no time, from an unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// Deflate in a gzip member.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Compresses what `make` writes, and gives it to `store` in order. Answers digest and length of what was written.
///
/// # Errors
/// Those of `make` and `store`; Canceled once `cancelled` is set.
pub(crate) fn compress(
    compression: Compression,
    cancelled: &AtomicBool,
    make: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    store: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Totals> {
    let (sender, parts) = sync_channel(WAITING);
    std::thread::scope(|scope| {
        let jobs = match compression {
            Compression::Gzip => Some(sync_channel(WAITING)),
            _ => None,
        };
        let (jobs, taken) = jobs.map(|(jobs, taken)| (jobs, Mutex::new(taken))).unzip();
        let taken = taken.map(std::sync::Arc::new);
        for _ in 0..taken.as_ref().map_or(0, |_| workers()) {
            let taken = taken.clone();
            std::thread::Builder::new().name("compress".into()).spawn_scoped(scope, move || {
                taken.iter().for_each(|taken| work(taken));
            })?;
        }
        // The workers hold it: when they are gone, nobody waits for them.
        drop(taken);
        let maker = std::thread::Builder::new().name("compare".into()).spawn_scoped(scope, move || {
            let mut pipe = Pipe::new(sender, jobs, cancelled);
            make(&mut pipe)?;
            pipe.finish()
        })?;
        let stored = collect(compression, parts, store);
        let made = maker.join().map_err(|_| Error::internal("the thread that makes a layer panicked"))?;
        // If storing failed, the maker only saw that nobody listens.
        stored?;
        made
    })
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(1, WORKERS)
}

/// A piece to be deflated.
struct Job {
    data: Vec<u8>,
    dictionary: Vec<u8>,
    is_last: bool,
    done: SyncSender<io::Result<Deflated>>,
}

struct Deflated {
    data: Vec<u8>,
    sum: Crc,
}

/// A piece on its way to the store.
enum Part {
    Plain(Vec<u8>),
    Deflating(Receiver<io::Result<Deflated>>),
}

/// The side of the maker.
struct Pipe<'a> {
    parts: SyncSender<Part>,
    jobs: Option<SyncSender<Job>>,
    cancelled: &'a AtomicBool,
    digester: Digester,
    size: u64,
    piece: Vec<u8>,
    dictionary: Vec<u8>,
}

impl<'a> Pipe<'a> {
    fn new(parts: SyncSender<Part>, jobs: Option<SyncSender<Job>>, cancelled: &'a AtomicBool) -> Self {
        let (piece, dictionary) = (Vec::with_capacity(PIECE), Vec::new());
        Self { parts, jobs, cancelled, digester: Digester::default(), size: 0, piece, dictionary }
    }

    fn finish(mut self) -> Result<Totals> {
        self.pass_on(true)?;
        Ok(Totals { digest: self.digester.finish(), size: self.size })
    }

    fn pass_on(&mut self, is_last: bool) -> io::Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other(canceled().message().to_owned()));
        }
        let data = std::mem::replace(&mut self.piece, Vec::with_capacity(if is_last { 0 } else { PIECE }));
        self.digester.update(&data);
        self.size += data.len() as u64;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let Some(jobs) = &self.jobs else {
            return self.parts.send(Part::Plain(data)).map_err(|_| gone());
        };
        let tail = data.get(data.len().saturating_sub(WINDOW)..).unwrap_or_default().to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        let (done, deflated) = sync_channel(1);
        self.parts.send(Part::Deflating(deflated)).map_err(|_| gone())?;
        jobs.send(Job { data, dictionary, is_last, done }).map_err(|_| gone())
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(data.get(..room).unwrap_or_default());
        if self.piece.len() >= PIECE {
            self.pass_on(false)?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Deflates piece after piece until there are no more.
fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // Nobody may be waiting any more.
        let _ = job.done.send(deflate(&job));
    }
}

fn deflate(job: &Job) -> io::Result<Deflated> {
    let mut sum = Crc::new();
    sum.update(&job.data);
    let mut deflater = Compress::new(flate2::Compression::new(GZIP_LEVEL), false);
    if !job.dictionary.is_empty() {
        deflater.set_dictionary(&job.dictionary)?;
    }
    let flush = if job.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut data = Vec::with_capacity(job.data.len() / 2 + 64);
    loop {
        let taken = usize::try_from(deflater.total_in()).unwrap_or(usize::MAX);
        let status = deflater.compress_vec(job.data.get(taken..).unwrap_or_default(), &mut data, flush)?;
        // With room left over there is nothing more to come out.
        if status == Status::StreamEnd || (!job.is_last && data.len() < data.capacity()) {
            return Ok(Deflated { data, sum });
        }
        data.reserve(PIECE / 4);
    }
}

/// Stores part after part, with what belongs around them.
fn collect(
    compression: Compression,
    parts: Receiver<Part>,
    mut store: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut encoder = match compression {
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            Some(encoder)
        }
        _ => None,
    };
    let (mut sum, mut is_first) = (Crc::new(), true);
    for part in parts {
        match (part, &mut encoder) {
            (Part::Plain(data), None) => store(&data)?,
            (Part::Plain(data), Some(encoder)) => {
                encoder.write_all(&data)?;
                store(encoder.get_ref())?;
                encoder.get_mut().clear();
            }
            (Part::Deflating(done), _) => {
                if std::mem::take(&mut is_first) {
                    store(&GZIP_HEADER)?;
                }
                let lost = |_| Error::internal("a thread that compresses panicked");
                let deflated = done.recv().map_err(lost)?.context("compression")?;
                sum.combine(&deflated.sum);
                store(&deflated.data)?;
            }
        }
    }
    match encoder {
        Some(encoder) => store(&encoder.finish()?),
        None if compression == Compression::Gzip => {
            store(&[sum.sum().to_le_bytes(), sum.amount().to_le_bytes()].concat())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use corten_types::Digest;

    use super::*;

    fn compressed(compression: Compression, data: &[u8]) -> Vec<u8> {
        let mut stored = Vec::new();
        let make =
            |output: &mut dyn Write| Ok(data.chunks(70_001).try_for_each(|data| output.write_all(data))?);
        let store = |data: &[u8]| {
            stored.extend_from_slice(data);
            Ok(())
        };
        let totals = compress(compression, &AtomicBool::new(false), make, store).unwrap();
        assert_eq!((totals.digest, totals.size), (Digest::sha256(data), data.len() as u64));
        stored
    }

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..length).map(|at| if at / 1000 % 3 == 0 { 7 } else { u8::try_from(next()).unwrap() }).collect()
    }

    #[test]
    fn what_is_compressed_is_the_same_afterwards() {
        for length in [0, 1, 1024, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 12_345] {
            let data = sample(length);
            assert_eq!(compressed(Compression::None, &data), data);
            let mut back = Vec::new();
            let gzip = compressed(Compression::Gzip, &data);
            // One member, as readers that stop after the first expect.
            flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut back).unwrap();
            assert!(back == data, "gzip of {length} bytes");
            assert_eq!(compressed(Compression::Gzip, &data), gzip, "the same bytes again");
            assert!(zstd::decode_all(compressed(Compression::Zstd, &data).as_slice()).unwrap() == data);
        }
    }

    #[test]
    fn failures_of_both_ends_are_told() {
        let failing = |_: &mut dyn Write| Err(Error::not_found("the maker"));
        let error = compress(Compression::Gzip, &AtomicBool::new(false), failing, |_| Ok(())).unwrap_err();
        assert!(error.is_not_found());
        let endless = |output: &mut dyn Write| loop {
            output.write_all(&[1; 4096])?;
        };
        let full = |_: &[u8]| Err(Error::unavailable("the disk"));
        let error = compress(Compression::Gzip, &AtomicBool::new(false), endless, full).unwrap_err();
        assert!(error.message().contains("the disk"));
        let error = compress(Compression::None, &AtomicBool::new(true), endless, |_| Ok(())).unwrap_err();
        assert!(error.message().contains("canceled"));
    }
}
